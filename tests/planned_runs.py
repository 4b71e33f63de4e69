"""Runs as a preflight plans them, from a model's config and the lengths of pairs alone."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Vocabulary, meta_classifier

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.recipe import parse_config
from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.data.cache.token_cache import TokenCache
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.preflight.resolved_run import PlannedRun, ResolvedRun
from rm_ray.storage import Storage


def random_lengths(count: int = 2_000) -> GroupLengths:
    """Return the lengths of pairs of 70 to 700 tokens a side."""
    rng = np.random.default_rng(0)
    prefix = rng.integers(50, 400, count)
    return GroupLengths.of_pairs(
        chosen=prefix + rng.integers(20, 300, count),
        rejected=prefix + rng.integers(20, 300, count),
        prefix=prefix,
    )


def empty_cache(storage: Storage, *, num_groups: int, **refused: int) -> TokenCache:
    """Return the counts of a token cache whose parts are not there."""
    return TokenCache(
        identity="identity", parts=TokenParts(key="key", parts=storage, origins=()),
        folder=storage, data_hash="hash", num_rows=num_groups, num_groups=num_groups,
        num_responses=2 * num_groups, num_comparisons=num_groups, num_ties=0, num_scores=0,
        num_tokens=0, groups_by_source={},
        refused=refused, duplicates=0, contradictions=0, revisions={}, readings=(),
    )  # fmt: skip


def plan_run(
    folder: Path,
    *,
    classifier: Any = None,
    tokenizer: Any = None,
    lengths: GroupLengths | None = None,
    batch: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> PlannedRun:
    """Return a run of settings, of an 8B Llama and random lengths unless told otherwise."""
    batch = {"global_batch_size": 256, "tokens_per_micro_batch": 8_192} | dict(batch or {})
    config = parse_config(
        {"run": {"name": "mine", "storage_path": str(folder)}, "batch": batch, **sections}
    )
    lengths = random_lengths() if lengths is None else lengths
    storage = Storage.open(str(folder))
    settings = PlanSettings(
        global_batch_size=config.batch.global_batch_size,
        tokens_per_micro_batch=config.batch.tokens_per_micro_batch,
        layout=config.batch.layout,
    )
    return PlannedRun(
        config=config,
        tokenizer=tokenizer or Vocabulary(1_000),
        classifier=classifier or meta_classifier(),
        storage=storage,
        template_date=date(2026, 1, 1),
        train=empty_cache(storage, num_groups=len(lengths), empty=3),
        held_out=None,
        overlap={},
        plan=Plan(lengths=lengths, settings=settings),
    )


def resolve_run(folder: Path, **options: Any) -> ResolvedRun:
    """Return the same with plain settings in place of 'auto'."""
    planned = plan_run(folder, **options)
    return planned.settle(planned.config.settle())
