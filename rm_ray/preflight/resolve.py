"""From a configuration to everything known before a worker starts: caches, plan, checks."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rm_ray.batches.plan import Plan, PlanSettings, Steps
from rm_ray.cluster.ray_cluster import fit_to_cluster
from rm_ray.config.train_config import CHOSEN, Layout, TrainConfig
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.rows.reading import describe_all
from rm_ray.data.tokens.template_date import pin_date
from rm_ray.data.tokens.tokenization import ends_assistant_turn, load_tokenizer
from rm_ray.data.tokens.vocabulary import check_vocabulary
from rm_ray.errors import InputError
from rm_ray.evaluation.pairwise import Labels
from rm_ray.model.attention import why_not_packed
from rm_ray.model.export import check_exportable, export_skeleton
from rm_ray.model.positions import check_positions
from rm_ray.model.reward_model import (
    attention_weight,
    build_without_weights,
    check_architecture,
    has_weights,
)
from rm_ray.preflight.caches import build_caches, find_held_out_trained_on
from rm_ray.publish.base_model import log_base_weights
from rm_ray.runs.layout import RUN, SKELETON
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowTarget
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.reference_rewards import ReferencePairs, choose_reference_pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """Everything known before a worker starts."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    classifier: PreTrainedModel
    """The model without its weights."""
    storage: Storage
    template_date: date
    """The day that a chat template is told."""
    train: TokenCache
    held_out: TokenCache | None
    overlap: dict[str, int]
    """Held-out pairs whose prompt is trained on too, by source."""
    plan: Plan
    eval_steps: Steps | None

    @property
    def run_folder(self) -> Storage:
        """The run's folder."""
        return self.storage.folder(self.config.run.name)

    @property
    def probes(self) -> ReferencePairs:
        """A few pairs, held out where any are, to compare clients by."""
        table = open_table((self.held_out or self.train).parts)
        return choose_reference_pairs(table, self.tokenizer)

    @property
    def eval_labels(self) -> Labels | None:
        """The sources of the held-out pairs."""
        if self.held_out is None:
            return None
        table = open_table(self.held_out.parts)
        return Labels(names=table.sources, codes=np.asarray(table.source))

    @property
    def mlflow(self) -> MlflowTarget:
        """Where metrics go."""
        return MlflowTarget.of(self.config.mlflow, self.storage)

    @property
    def caches(self) -> dict[str, TokenCache]:
        """The tokenised pairs by set: train, and eval where there are held-out ones."""
        return {"train": self.train} | ({"eval": self.held_out} if self.held_out else {})

    @property
    def identity(self) -> dict[str, str]:
        """What a resumed run must share with the one it goes on with."""
        return {
            "train": self.train.identity,
            "eval": self.held_out.identity if self.held_out else "",
            "plan": self.plan.fingerprint(),
        }

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Refused rows, counted by set and reason."""
        return [
            {"set": name, "reason": reason, "rows": count}
            for name, cache in self.caches.items()
            for reason, count in cache.refused.items()
        ]

    @property
    def row_counts(self) -> list[dict[str, Any]]:
        """Rows kept and refused, by set and reason."""
        kept = [
            {"set": name, "reason": "(kept)", "rows": cache.num_pairs}
            for name, cache in self.caches.items()
        ]
        return kept + self.refused + self.repeats

    @property
    def repeats(self) -> list[dict[str, Any]]:
        """Kept pairs that say something again, or the contrary, by set and kind."""
        kinds = {"(kept) exact duplicate": "duplicates", "(kept) contradiction": "contradictions"}
        found = [
            {"set": name, "reason": kind, "rows": getattr(cache, attribute)}
            for name, cache in self.caches.items()
            for kind, attribute in kinds.items()
        ]
        seen = {"set": "eval", "reason": "(kept) prompt is trained on too"}
        found.append({**seen, "rows": sum(self.overlap.values())})
        return [row for row in found if row["rows"]]


def keep_choices(config: TrainConfig, run_folder: Storage) -> TrainConfig:
    """Keep what was chosen as the run began, GPUs among it: it waits where they are gone."""
    record = run_folder.read_json(RUN)
    if record is None:
        return config
    stage_then = record["config"]["cluster"].get("zero_stage")
    for section, name in [("cluster", "use_gpu"), *(setting.split(".") for setting in CHOSEN)]:
        mine = getattr(config, section)
        then = record["config"][section].get(name)
        if name == "zero_secondary_partition" and config.cluster.zero_stage != stage_then:
            # It was chosen beside another stage, and there is none but at stage 3.
            then = None if config.cluster.zero_stage == 3 else False
        if getattr(mine, name) in (None, "auto") and then is not None:
            config = replace(config, **{section: replace(mine, **{name: then})})
    return config


def find_template_date(config: TrainConfig, run_folder: Storage) -> date:
    """Return the day that a chat template is told: the setting, the run's beginning, or today."""
    record = run_folder.read_json(RUN) or {}
    day = config.data.template_date or record.get("template_date")
    return date.fromisoformat(day) if day else datetime.now().astimezone().date()


def resolve_run(
    config: TrainConfig, *, waits: bool = False, on_phase: Callable[[str], None] = lambda _: None
) -> ResolvedRun:
    """Check everything that can be checked, and tokenise what has not been yet.

    Where it ``waits``, it does so until the cluster has enough machines. ``on_phase`` is told what
    is done.

    Raises:
        InputError: something given cannot be trained on.
    """
    storage = Storage.open(config.run.storage_path)
    config = keep_choices(config, storage.folder(config.run.name))
    fitted = replace(config, cluster=fit_to_cluster(config.cluster, waits=waits))
    return resolve_for_workers(fitted, on_phase=on_phase)


def resolve_for_workers(
    config: TrainConfig, *, on_phase: Callable[[str], None] = lambda _: None
) -> ResolvedRun:
    """Check and tokenise for the workers that the configuration names, wherever they are.

    Raises:
        InputError: something given cannot be trained on.
    """
    storage = Storage.open(config.run.storage_path)
    if config.model.liger == "on" and not config.cluster.use_gpu:
        raise InputError(
            "model.liger is 'on', but Liger's Triton kernels need a GPU and the workers have none; "
            "use 'auto' or 'off'"
        )
    if config.mlflow.tracking_uri is None and not storage.is_local:
        raise InputError(
            f"mlflow.tracking_uri is not set, and its default, an SQLite file in run.storage_path, "
            f"cannot be kept at '{config.run.storage_path}'; name an MLflow server"
        )
    day = find_template_date(config, storage.folder(config.run.name))
    tokenizer = read_tokenizer(config)
    if pin_date(tokenizer, day):
        logger.info(
            "the chat template asks for the date, and is told %s in this run and its exports "
            "(data.template_date)",
            day.isoformat(),
        )
    if not ends_assistant_turn(tokenizer):
        logger.warning(
            "the chat template ends the assistant's turn without an end-of-turn or EOS token: the "
            "reward is read from a token that looks the same in the middle of a response"
        )
    classifier = check_architecture(config.model, tokenizer)
    check_model_and_tokenizer(config, tokenizer, classifier.config)
    log_base_weights(config.model)
    check_exportable(classifier.config, tokenizer)
    layout = choose_layout(config.batch.layout, classifier.config)
    train_cache, held_out = build_caches(config, tokenizer, storage)
    on_phase("cache")
    batch, optimizer = config.batch, config.optimizer
    settings = PlanSettings(
        global_batch_size=batch.global_batch_size,
        tokens_per_micro_batch=batch.tokens_per_micro_batch,
        layout=layout,
        attention_weight=attention_weight(classifier) if layout == "packed" else 0.0,
        seed=config.run.seed,
        epochs=optimizer.epochs,
        max_episodes=optimizer.max_episodes,
    )
    resolved = ResolvedRun(
        config=config,
        tokenizer=tokenizer,
        classifier=classifier,
        storage=storage,
        template_date=day,
        train=train_cache,
        held_out=held_out,
        overlap=find_held_out_trained_on(train_cache, held_out),
        plan=Plan(lengths=open_table(train_cache.parts).lengths, settings=settings),
        eval_steps=(
            Steps(num_pairs=held_out.num_pairs, settings=in_order(settings)) if held_out else None
        ),
    )
    on_phase("plan")
    return resolved


def check_model_and_tokenizer(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, architecture: PretrainedConfig
) -> None:
    """See that model, tokenizer and data.max_length suit one another.

    Raises:
        InputError: they do not.
    """
    is_trained = has_weights(config.model)
    check_vocabulary(tokenizer, architecture, is_trained=is_trained)
    check_positions(architecture, config.data.max_length, model=config.model.name_or_path)


def choose_layout(wanted: Layout, architecture: PretrainedConfig) -> Layout:
    """Return the layout that is asked for, or 'padded' where the model cannot be packed."""
    if wanted == "packed" and (reason := why_not_packed(architecture)):
        logger.info("batch.layout: padded instead of packed, since %s", reason)
        return "padded"
    return wanted


def read_tokenizer(config: TrainConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the chat template that pairs are turned into tokens by.

    Raises:
        InputError: it cannot be loaded, or has no chat template.
    """
    return load_tokenizer(
        config.model.tokenizer or _tokenizer_of(config.model.name_or_path),
        revision=config.model.revision if config.model.tokenizer is None else None,
        chat_template=config.data.chat_template,
    )


def _tokenizer_of(model: str) -> str:
    if model.endswith(".json"):
        raise InputError(
            f"model.name_or_path '{model}' is a config without a tokenizer; name one with "
            "model.tokenizer"
        )
    return model


def in_order(settings: PlanSettings) -> PlanSettings:
    """Return the plan of one pass over held-out pairs."""
    return replace(settings, epochs=1, max_episodes=None, shuffle=False)


def write_skeleton(resolved: ResolvedRun) -> None:
    """Keep what the exported model has beside its weights, for whoever publishes checkpoints."""
    config = resolved.config.model
    model = build_without_weights(config, resolved.tokenizer)
    with tempfile.TemporaryDirectory(prefix="rm_ray-skeleton-") as folder:
        dtype = getattr(torch, config.dtype)
        export_skeleton(model, resolved.tokenizer, Path(folder), dtype=dtype)
        resolved.run_folder.upload(Path(folder), SKELETON)


def describe_run(resolved: ResolvedRun) -> dict[str, Any]:
    """Return what a run would do: resolved settings, counts, steps, learning-rate end points."""
    steps = resolved.plan.steps
    rate = learning_rate_schedule(resolved.config.optimizer, steps.total)
    warmup = min(resolved.config.optimizer.warmup_steps, steps.total)
    return {
        "config": resolved.config.to_json(),
        "train_pairs": resolved.train.num_pairs,
        "train_pairs_by_source": resolved.train.pairs_by_source,
        "train_tokens": resolved.train.num_tokens,
        "eval_pairs": resolved.held_out.num_pairs if resolved.held_out else 0,
        "refused": resolved.refused,
        "repeats": resolved.repeats,
        "eval_pairs_trained_on_by_source": resolved.overlap,
        "columns": {n: describe_all(cache.readings) for n, cache in resolved.caches.items()},
        "steps": steps.total,
        "steps_per_epoch": steps.per_epoch,
        "episodes": steps.num_episodes,
        "learning_rate": {
            "first_step": rate(0),
            "after_warmup": rate(warmup),
            "last_step": rate(steps.total - 1),
        },
    }


def describe_data(resolved: ResolvedRun) -> dict[str, Any]:
    """Return hashes and counts of the pairs, for the run's record."""
    return {
        name: {
            "data_hash": cache.data_hash,
            "pairs": cache.num_pairs,
            "pairs_by_source": cache.pairs_by_source,
            "tokens": cache.num_tokens,
            "refused": cache.refused,
            "duplicates": cache.duplicates,
            "contradictions": cache.contradictions,
            **({"trained_on_by_source": resolved.overlap} if name == "eval" else {}),
            "revisions": cache.revisions,
            "quarantine": cache.quarantine,
            "readings": [reading.to_json() for reading in cache.readings],
        }
        for name, cache in resolved.caches.items()
    }
