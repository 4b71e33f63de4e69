"""A run before any worker starts: planned, then with every setting resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rm_ray.batches.plan import Plan, PlanSettings, Steps
from rm_ray.config.train_config import ResolvedConfig, TrainConfig
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.rows.column_readings import describe_all
from rm_ray.evaluation.pairwise import Labels
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowTarget
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.reference_rewards import ReferencePairs, choose_reference_pairs


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run whose pairs, model and plan are known; settings may still be 'auto'."""

    config: TrainConfig
    """Settings with the number of workers decided."""
    tokenizer: PreTrainedTokenizerBase
    classifier: PreTrainedModel
    """The model without its weights."""
    storage: Storage
    template_date: date
    """The date that the chat template uses as today."""
    train: TokenCache
    held_out: TokenCache | None
    overlap: dict[str, int]
    """Held-out pairs whose prompt is also trained on, by source."""
    plan: Plan

    @property
    def run_folder(self) -> Storage:
        """The run's folder."""
        return self.storage.folder(self.config.run.name)

    @property
    def mlflow(self) -> MlflowTarget:
        """The MLflow target of the run's metrics."""
        return MlflowTarget.of(self.config.mlflow, self.storage)

    @property
    def reference_pairs(self) -> ReferencePairs:
        """A few pairs, held-out ones if available, whose rewards let clients check a model."""
        table = open_table((self.held_out or self.train).parts)
        return choose_reference_pairs(table, self.tokenizer)

    @property
    def eval_labels(self) -> Labels | None:
        """The sources of the held-out pairs; None without held-out pairs."""
        if self.held_out is None:
            return None
        table = open_table(self.held_out.parts)
        return Labels(names=table.sources, codes=np.asarray(table.source))

    @property
    def eval_settings(self) -> PlanSettings:
        """The plan settings of one pass over the held-out pairs, in order."""
        return replace(self.plan.settings, epochs=1, max_episodes=None, shuffle=False)

    @property
    def eval_steps(self) -> Steps | None:
        """The steps of one evaluation; None without held-out pairs."""
        if self.held_out is None:
            return None
        return Steps(num_pairs=self.held_out.num_pairs, settings=self.eval_settings)

    @property
    def caches(self) -> dict[str, TokenCache]:
        """The token caches by set: 'train', and 'eval' if pairs are held out."""
        return {"train": self.train} | ({"eval": self.held_out} if self.held_out else {})

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints that must match when the run resumes."""
        return {
            "train": self.train.identity,
            "eval": self.held_out.identity if self.held_out else "",
            "plan": self.plan.fingerprint(),
        }

    @property
    def refused(self) -> list[dict[str, Any]]:
        """Refused rows by set and reason."""
        return [
            {"set": name, "reason": reason, "rows": count}
            for name, cache in self.caches.items()
            for reason, count in cache.refused.items()
        ]

    @property
    def row_counts(self) -> list[dict[str, Any]]:
        """Kept and refused rows by set and reason."""
        kept = [
            {"set": name, "reason": "(kept)", "rows": cache.num_pairs}
            for name, cache in self.caches.items()
        ]
        return kept + self.refused + self.repeats

    @property
    def repeats(self) -> list[dict[str, Any]]:
        """Kept pairs that duplicate, contradict or overlap with others, by set and kind."""
        kinds = {"(kept) exact duplicate": "duplicates", "(kept) contradiction": "contradictions"}
        found = [
            {"set": name, "reason": kind, "rows": getattr(cache, attribute)}
            for name, cache in self.caches.items()
            for kind, attribute in kinds.items()
        ]
        seen = {"set": "eval", "reason": "(kept) prompt is trained on too"}
        found.append({**seen, "rows": sum(self.overlap.values())})
        return [row for row in found if row["rows"]]

    def settle(self, config: ResolvedConfig) -> ResolvedRun:
        """Return the run with resolved settings."""
        return ResolvedRun(**{**vars(self), "config": config})


@dataclass(frozen=True, kw_only=True)
class ResolvedRun(PlannedRun):
    """A planned run with every setting resolved, ready for workers."""

    config: ResolvedConfig


def describe_run(resolved: ResolvedRun) -> dict[str, Any]:
    """Return what a run would do: settings, counts, steps and learning rates."""
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
