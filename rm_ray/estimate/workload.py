"""A plan -> the tokens that its steps compute, and their largest forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from rm_ray.batches.plan import Plan
from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.group_tokens import GroupLengths, count_positions


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a run computes in one layout, estimated from sampled steps."""

    layout: Layout

    num_sampled: int
    """Steps sampled; ``is_exact`` if they are a full epoch."""

    is_exact: bool

    distinct: int
    """Tokens of all groups in the run, each shared prefix counted once."""

    computed: int
    """Positions in all forward passes of the run, padding and repeated groups included."""

    largest: GroupLengths
    """The groups of the forward pass with the most positions."""

    most_positions: int
    """Positions in that forward pass."""

    most_micro_batches: int
    """Most forward passes per worker in one step."""


def measure_workload(plan: Plan, *, world_size: int, most_steps: int) -> Workload:
    """Sample up to ``most_steps`` steps of the first epoch, plus the one with the largest group."""
    layout, lengths = plan.settings.layout, plan.lengths
    num_steps = min(plan.steps.per_epoch, plan.steps.total)
    evenly = np.linspace(0, num_steps - 1, min(most_steps, num_steps)).round().astype(int)
    sampled = {*evenly.tolist(), _step_of_largest(plan, num_steps)}
    distinct = computed = most_positions = most_micro_batches = 0
    largest = np.empty(0, dtype=np.int64)
    for step in sorted(sampled):
        groups = plan.groups_of_step(step)
        distinct += int(lengths[groups].distinct.sum())
        ranks = plan.spread(groups, world_size)
        most_micro_batches = max(most_micro_batches, len(ranks[0]))
        for members, _ in (micro_batch for rank in ranks for micro_batch in rank):
            positions = count_positions(lengths[groups[members]], layout)
            computed += positions
            if positions > most_positions:
                most_positions, largest = positions, groups[members]
    passes = plan.steps.num_episodes / len(lengths)
    whole = round(int(lengths.distinct.sum()) * passes)
    return Workload(
        layout=layout,
        num_sampled=len(sampled),
        is_exact=len(sampled) == plan.steps.per_epoch,
        distinct=whole,
        computed=round(whole * computed / distinct),
        largest=lengths[largest],
        most_positions=most_positions,
        most_micro_batches=most_micro_batches,
    )


def in_layout(plan: Plan, layout: Layout) -> Plan:
    """Return the plan with another layout."""
    return replace(plan, settings=replace(plan.settings, layout=layout))


def _step_of_largest(plan: Plan, num_steps: int) -> int:
    """Return the first epoch's step with the largest group, capped at the last step."""
    lengths, is_padded = plan.lengths, plan.settings.layout == "padded"
    sizes = lengths.num_responses * lengths.longest if is_padded else lengths.distinct
    place = int(np.flatnonzero(plan.order(0) == int(np.argmax(sizes)))[0])
    return min(place // plan.settings.global_batch_size, num_steps - 1)
