"""A config -> a planned run: tokenizer and model checked, pairs tokenised, steps planned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import date, datetime

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.tokens.template_date import pin_date
from rm_ray.data.tokens.tokenizer import ends_assistant_turn, load_tokenizer
from rm_ray.data.tokens.vocabulary import check_vocabulary
from rm_ray.errors import InputError
from rm_ray.model.architecture import attention_weight
from rm_ray.model.attention import why_not_packed
from rm_ray.model.build import check_architecture
from rm_ray.model.export import check_exportable
from rm_ray.model.positions import check_positions
from rm_ray.model.tuning.trainable import check_trainable
from rm_ray.preflight.caches import build_caches, find_prompt_overlap
from rm_ray.preflight.held_out.named_sets import build_named_caches, label_named_sets
from rm_ray.preflight.held_out.ranking import refuse_missing_metric
from rm_ray.preflight.resolved_run import PlannedRun
from rm_ray.pretrained import adapter_of, base_model
from rm_ray.publish.base_model import log_base_weights
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


def plan_run(
    config: TrainConfig, storage: Storage, *, on_phase: Callable[[str], None] = lambda _: None
) -> PlannedRun:
    """Check the config, tokenise its pairs and plan its steps; no cluster is needed.

    ``storage`` is at ``run.storage_path``; ``on_phase`` receives the name of each finished phase.

    Raises:
        InputError: the config or its data is not suitable for training.
    """
    check_worker_requirements(config, storage)
    day = find_template_date(config, storage.folder(config.run.name))
    tokenizer = read_dated_tokenizer(config, day)
    classifier, head = check_model(config, tokenizer)
    layout = choose_layout(config.batch.layout, classifier.config)
    named = build_named_caches(config, tokenizer, storage)
    train, held_out = build_caches(config, tokenizer, storage, named)
    named_sets = label_named_sets(config, named, train)
    refuse_missing_metric(config, named_sets)
    on_phase("cache")
    weight = attention_weight(classifier) if layout == "packed" else 0.0
    settings = plan_settings(config, layout=layout, attention_weight=weight)
    planned = PlannedRun(
        config=config,
        tokenizer=tokenizer,
        classifier=classifier,
        head=head,
        storage=storage,
        template_date=day,
        train=train,
        held_out=held_out,
        overlap=find_prompt_overlap(train, held_out),
        named_sets=named_sets,
        plan=Plan(lengths=open_table(train.parts).lengths, settings=settings),
    )
    on_phase("plan")
    return planned


def check_worker_requirements(config: TrainConfig, storage: Storage) -> None:
    """Check that the workers have the GPUs and the MLflow server that the settings need.

    Raises:
        InputError: one is missing.
    """
    if config.model.liger == "on" and not config.cluster.use_gpu:
        raise InputError(
            "model.liger is 'on', but Liger's Triton kernels need a GPU and the workers have none. "
            "Use 'auto' or 'off'."
        )
    if config.model.activation_offloading and not config.cluster.use_gpu:
        raise InputError(
            "model.activation_offloading is true, but the workers have no GPU whose memory it "
            "could save. Set it to false."
        )
    if config.mlflow.tracking_uri is None and not storage.is_local:
        raise InputError(
            f"mlflow.tracking_uri is not set, and its default, an SQLite file in run.storage_path, "
            f"cannot be stored at '{config.run.storage_path}'. Set it to an MLflow server."
        )


def find_template_date(config: TrainConfig, run_folder: Storage) -> date:
    """Return the date for the chat template: from the setting, the run's record, or today."""
    record = run_folder.read_json(RUN) or {}
    day = config.data.template_date or record.get("template_date")
    return date.fromisoformat(day) if day else datetime.now().astimezone().date()


def read_dated_tokenizer(config: TrainConfig, day: date) -> PreTrainedTokenizerBase:
    """Return the tokenizer, its chat template pinned to ``day``; warn if turns have no end token.

    Raises:
        InputError: the tokenizer cannot be loaded or has no chat template.
    """
    tokenizer = read_tokenizer(config)
    if pin_date(tokenizer, day):
        logger.info(
            "the chat template uses today's date: this run and its exports fix it to %s "
            "(data.template_date)",
            day.isoformat(),
        )
    if not ends_assistant_turn(tokenizer):
        logger.warning(
            "the chat template ends the assistant's turn without an end-of-turn or EOS token: the "
            "reward is read from a token that may also occur within a response"
        )
    return tokenizer


def read_tokenizer(config: TrainConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the run's chat template.

    Raises:
        InputError: the tokenizer cannot be loaded or has no chat template.
    """
    named = config.model.tokenizer
    name, revision = _tokenizer_of(config.model) if named is None else (named, None)
    return load_tokenizer(name, revision=revision, chat_template=config.data.chat_template)


def _tokenizer_of(config: ModelConfig) -> tuple[str, str | None]:
    """Return the model's own tokenizer, and its revision; an adapter may bring one."""
    adapter, model = adapter_of(config), base_model(config)
    if model.kind == "config":
        raise InputError(f"{model.text} is a config without a tokenizer. Set model.tokenizer.")
    if adapter is not None and (adapter.path / "tokenizer.json").is_file():
        return adapter.name, adapter.revision
    return model.name, model.revision


def check_model(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, str]:
    """Return the model without its weights, after checking that it can be trained and exported.

    The second value is where its head starts, as from ``log_base_weights``.

    Raises:
        InputError: it cannot be trained or exported.
    """
    classifier = check_architecture(config.model, tokenizer)
    check_trainable(config.model, config.lora, classifier)
    check_model_and_tokenizer(config, tokenizer, classifier.config)
    head = log_base_weights(config.model)
    check_exportable(classifier.config, tokenizer)
    return classifier, head


def check_model_and_tokenizer(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, architecture: PretrainedConfig
) -> None:
    """Check that model, tokenizer and data.max_length match.

    Raises:
        InputError: they do not match.
    """
    is_trained = base_model(config.model).has_weights
    check_vocabulary(tokenizer, architecture, is_trained=is_trained)
    check_positions(architecture, config.data.max_length, model=config.model.name_or_path)


def choose_layout(wanted: Layout, architecture: PretrainedConfig) -> Layout:
    """Return the requested layout, or 'padded' if the model does not support packing."""
    if wanted == "packed" and (reason := why_not_packed(architecture)):
        logger.info("batch.layout: padded instead of packed, since %s", reason)
        return "padded"
    return wanted


def plan_settings(config: TrainConfig, *, layout: Layout, attention_weight: float) -> PlanSettings:
    """Return the settings that determine steps and micro-batches."""
    return PlanSettings(
        global_batch_size=config.batch.global_batch_size,
        tokens_per_micro_batch=config.batch.tokens_per_micro_batch,
        layout=layout,
        attention_weight=attention_weight,
        seed=config.run.seed,
        epochs=config.optimizer.epochs,
        max_episodes=config.optimizer.max_episodes,
    )
