"""The tokens that the steps of a plan compute."""

from dataclasses import replace

import numpy as np
import pytest
from packed_shapes import of_shapes
from shapes import lengths_of

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.data.cache.group_tokens import GroupLengths, count_positions
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.workload import in_layout, measure_workload
from rm_ray.preflight.report.histogram import histogram

SETTINGS = PlanSettings(global_batch_size=2, tokens_per_micro_batch=100, epochs=2, shuffle=False)

FOUR = lengths_of((30, 20, 10), (25, 25, 5), (60, 50, 20), (10, 10, 9))
"""Pairs of 40, 45, 90 and 11 distinct tokens."""


def some_pairs(count: int, seed: int = 0) -> GroupLengths:
    rng = np.random.default_rng(seed)
    sides = rng.integers(5, 120, size=(2, count))
    prefix = (rng.random(count) * sides.min(axis=0)).astype(int)
    return lengths_of(*zip(*sides.tolist(), prefix.tolist(), strict=True))


def test_packed_pairs_compute_each_distinct_token_once():
    workload = measure_workload(Plan(lengths=FOUR, settings=SETTINGS), world_size=1, most_steps=9)
    assert workload.is_exact
    assert (workload.distinct, workload.computed) == (2 * 186, 2 * 186)
    # 90 and 11 together exceed 100.
    assert (workload.most_positions, workload.most_micro_batches) == (90, 2)
    assert workload.largest.distinct.tolist() == [90]


def test_padded_pairs_compute_the_length_of_the_longest_conversation_in_their_batch():
    plan = in_layout(Plan(lengths=FOUR, settings=SETTINGS), "padded")
    workload = measure_workload(plan, world_size=1, most_steps=9)
    # Batches of up to 100 positions, per side: 30 and 25; 60; 10.
    assert workload.computed == 2 * (2 * 30 + 2 * 25 + 2 * 60 + 2 * 10)
    assert workload.most_positions == 120
    assert count_positions(FOUR, "padded") == 2 * 4 * 60


def test_groups_of_other_sizes_compute_each_distinct_token_once_or_as_many_rows_as_responses():
    lengths = of_shapes([(10, 5, 6, 7), (0, 30), (4, 9, 8), (20, 1, 1, 1, 1, 1)]).lengths
    assert lengths.distinct.tolist() == [28, 30, 21, 25]
    settings = replace(SETTINGS, tokens_per_micro_batch=60)
    plan = Plan(lengths=lengths, settings=settings)
    packed = measure_workload(plan, world_size=1, most_steps=9)
    assert (packed.distinct, packed.computed) == (2 * 104, 2 * 104)
    assert (packed.most_positions, packed.most_micro_batches) == (58, 1)
    padded = measure_workload(in_layout(plan, "padded"), world_size=1, most_steps=9)
    # One group a micro-batch: 3 rows of 17, 1 of 30, 2 of 13 and 5 of 21.
    assert padded.computed == 2 * (3 * 17 + 30 + 2 * 13 + 5 * 21)
    assert padded.largest.conversations.tolist() == [21] * 5
    assert count_positions(lengths, "padded") == 11 * 30


def test_the_step_with_the_most_padded_positions_is_sampled():
    shapes = [(0, 40), *[(0, 20, 20)] * 8, (0, *[15] * 5), *[(0, 20, 20)] * 7]
    plan = Plan(lengths=of_shapes(shapes).lengths, settings=replace(SETTINGS, layout="padded"))
    workload = measure_workload(plan, world_size=1, most_steps=1)
    assert workload.most_positions == 5 * 15


def test_sampled_steps_represent_all_steps_and_include_the_largest_pair():
    lengths = some_pairs(4_000)
    plan = Plan(lengths=lengths, settings=replace(SETTINGS, global_batch_size=40, shuffle=True))
    few, all_of_them = (
        measure_workload(plan, world_size=2, most_steps=steps) for steps in (10, 100)
    )
    assert (few.is_exact, all_of_them.is_exact) == (False, True)
    assert few.num_sampled in (10, 11)
    assert few.computed == pytest.approx(all_of_them.computed, rel=0.05)
    assert few.most_positions == all_of_them.most_positions == lengths.distinct.max()


def test_a_short_run_samples_only_its_own_steps():
    lengths = some_pairs(400)
    settings = replace(SETTINGS, epochs=1, max_episodes=20)
    workload = measure_workload(
        Plan(lengths=lengths, settings=settings), world_size=1, most_steps=100
    )
    assert workload.num_sampled == 10
    assert workload.distinct == round(lengths.distinct.sum() * 20 / 400)


def test_a_row_counts_the_keys_of_both_branches():
    row = ForwardPass.of(FOUR, layout="packed", attention="varlen")
    assert (row.positions, row.queries, row.keys) == (186, 186, 230)
    grouped = ForwardPass.of(FOUR, layout="packed", attention="grouped")
    assert grouped.positions == 186
    assert grouped.keys >= 230
    padded = ForwardPass.of(FOUR, layout="padded", attention="sdpa")
    assert (padded.positions, padded.masked) == (8 * 60, 8 * 60**2)


def test_a_row_of_other_sizes_counts_the_keys_of_every_branch():
    lengths = of_shapes([(10, 5, 6, 7), (0, 30), (20, 1, 1, 1, 1, 1)]).lengths
    row = ForwardPass.of(lengths, layout="packed", attention="varlen")
    assert (row.positions, row.queries, row.keys) == (83, 83, 15 + 16 + 17 + 30 + 5 * 21)
    padded = ForwardPass.of(lengths, layout="padded", attention="sdpa")
    assert (padded.positions, padded.products) == (9 * 30, 9 * 30**2)


def test_a_histogram_counts_everything_once():
    values = np.array([1, 1, 2, 5, 9, 9, 9, 9])
    rows = histogram(values, most_rows=3)
    assert [line.split() for line in rows] == [
        ["1", "to", "3", "3", "#" * 30],
        ["4", "to", "6", "1", "#" * 10],
        ["7", "to", "9", "4", "#" * 40],
    ]
    assert len(histogram(np.array([7, 7]))) == 1
