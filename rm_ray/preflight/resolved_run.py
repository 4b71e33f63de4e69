"""A run before any worker starts: planned, then with every setting resolved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.train_config import ResolvedConfig, TrainConfig
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_table import open_table
from rm_ray.data.rows.column_readings import describe_all
from rm_ray.evaluation.held_out_set import HeldOutSet
from rm_ray.preflight.held_out.named_sets import NamedSet, held_out_set
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowTarget
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.reference_rewards import ReferenceGroups, choose_reference_groups


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run whose pairs, model and plan are known; settings may still be 'auto'."""

    config: TrainConfig
    """Settings with the number of workers decided."""
    tokenizer: PreTrainedTokenizerBase
    classifier: PreTrainedModel
    """The model without its weights."""
    head: str = "new"
    """The base model's weight that the head starts from; 'new', or 'unknown' before it loads."""
    storage: Storage
    template_date: date
    """The date that the chat template uses as today."""
    train: TokenCache
    held_out: TokenCache | None
    overlap: dict[str, int]
    """Held-out pairs whose prompt is also trained on, by source."""
    named_sets: tuple[NamedSet, ...] = ()
    """The sets of ``evaluation.sets``."""
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
    def reference_groups(self) -> ReferenceGroups:
        """A few pairs, held-out ones if available, whose rewards let clients check a model."""
        table = open_table((self.held_out or self.train).parts)
        return choose_reference_groups(table, self.tokenizer)

    @property
    def eval_settings(self) -> PlanSettings:
        """The plan settings of one pass over the held-out pairs, in order."""
        return replace(self.plan.settings, epochs=1, max_episodes=None, shuffle=False)

    @property
    def held_out_sets(self) -> tuple[HeldOutSet, ...]:
        """What workers evaluate on: the held-out pairs, if there are any, then the named sets."""
        settings = self.eval_settings
        default = [] if self.held_out is None else [held_out_set(self.held_out, settings)]
        named = (
            held_out_set(one.cache, settings, name=one.name, prompts=one.prompts)
            for one in self.named_sets
        )
        return (*default, *named)

    @property
    def caches(self) -> dict[str, TokenCache]:
        """The token caches by set: 'train', 'eval' if pairs are held out, and named sets."""
        held_out = {"eval": self.held_out} if self.held_out else {}
        return {"train": self.train, **held_out, **{s.dataset: s.cache for s in self.named_sets}}

    @property
    def overlaps(self) -> dict[str, dict[str, int]]:
        """The pairs of each held-out set whose prompt is also trained on, by source."""
        return {"eval": self.overlap, **{one.dataset: one.overlap for one in self.named_sets}}

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints that must match when the run resumes."""
        return {
            "train": self.train.identity,
            "eval": self.held_out.identity if self.held_out else "",
            "plan": self.plan.fingerprint(),
            **{one.dataset: one.cache.identity for one in self.named_sets},
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
            {"set": name, "reason": "(kept)", "rows": cache.num_rows}
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
        seen = "(kept) prompt is trained on too"
        found += [
            {"set": name, "reason": seen, "rows": sum(by_source.values())}
            for name, by_source in self.overlaps.items()
        ]
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
        "train_pairs": resolved.train.num_groups,
        "train_pairs_by_source": resolved.train.groups_by_source,
        "train_tokens": resolved.train.num_tokens,
        "eval_pairs": resolved.held_out.num_groups if resolved.held_out else 0,
        **count_named(resolved),
        "refused": resolved.refused,
        "repeats": resolved.repeats,
        "eval_pairs_trained_on_by_source": resolved.overlap,
        "columns": {n: describe_all(cache.readings) for n, cache in resolved.caches.items()},
        "steps": steps.total,
        "steps_per_epoch": steps.per_epoch,
        "episodes": steps.num_episodes,
        "head": resolved.head,
        "learning_rate": {
            "first_step": rate(0),
            "after_warmup": rate(warmup),
            "last_step": rate(steps.total - 1),
        },
    }


def count_named(resolved: PlannedRun) -> dict[str, dict[str, int]]:
    """Return ``{eval_pairs_by_set: {name: pairs}}``; empty without named sets."""
    counts = {one.name: one.cache.num_groups for one in resolved.named_sets}
    return {"eval_pairs_by_set": counts} if counts else {}


def describe_data(resolved: ResolvedRun) -> dict[str, Any]:
    """Return hashes and counts of the pairs or groups, for the run's record."""
    overlaps = resolved.overlaps
    return {
        name: {
            "data_hash": cache.data_hash,
            "unit": cache.unit,
            "pairs": cache.num_groups,
            "pairs_by_source": cache.groups_by_source,
            "tokens": cache.num_tokens,
            "refused": cache.refused,
            "duplicates": cache.duplicates,
            "contradictions": cache.contradictions,
            **({"trained_on_by_source": overlaps[name]} if name in overlaps else {}),
            "revisions": cache.revisions,
            "quarantine": cache.quarantine,
            "readings": [reading.to_json() for reading in cache.readings],
        }
        for name, cache in resolved.caches.items()
    }
