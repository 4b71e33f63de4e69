"""Cutting a stream into steps; ``tests/integration/test_data.py`` streams through Ray Data."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tables import builtin_table

from rm_ray.batches.loading import LoadedMicroBatch, load_step
from rm_ray.batches.plan import PlanSettings
from rm_ray.batches.stream import PlannedGroups, RankStream, take_steps
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.storage import Storage

SETTINGS = PlanSettings(global_batch_size=12, tokens_per_micro_batch=150)


def planned(folder: Path) -> PlannedGroups:
    parts = TokenParts(key="key", parts=Storage.open(str(folder)), origins=("rows",))
    return PlannedGroups(cache=parts, settings=SETTINGS)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[list[LoadedMicroBatch]]:
    """Micro-batches of rank 1 of 2 in each step of a run over 40 pairs."""
    folder = tmp_path_factory.mktemp("stream")
    table, _ = builtin_table(folder / "table", 40)
    plan = planned(folder).plan(table)
    return [
        list(load_step(table, plan, step, rank=1, world_size=2)) for step in range(plan.steps.total)
    ]


def one_by_one(steps: list[list[LoadedMicroBatch]]) -> Iterator[LoadedMicroBatch]:
    return (micro_batch for step in steps for micro_batch in step)


@pytest.mark.parametrize("first", [0, 2])
def test_a_stream_is_cut_into_its_planned_steps(first: int, steps: list[list[LoadedMicroBatch]]):
    stream = one_by_one(steps[first:])

    taken = list(take_steps(stream, range(first, len(steps)), rank=1))

    assert len({len(step) for step in steps}) > 1
    assert [len(step) for step in taken] == [len(step) for step in steps[first:]]
    for got, sent in zip(taken, steps[first:], strict=True):
        assert all(a is b for a, b in zip(got, sent, strict=True))


def test_a_step_is_yielded_before_the_next_is_read(steps: list[list[LoadedMicroBatch]]):
    stream = one_by_one(steps)

    next(take_steps(stream, range(len(steps)), rank=1))

    assert next(stream) is steps[1][0]


@pytest.mark.parametrize("change", [{"step": 1}, {"position": 1}, {"rank": 0}])
def test_a_micro_batch_of_another_step_position_or_rank_is_refused(
    change: dict[str, int], steps: list[list[LoadedMicroBatch]]
):
    first = steps[0][0]
    wrong = replace(first, plan=replace(first.plan, **change))

    with pytest.raises(RuntimeError, match=r"rank 1 received .*, expected \(0, 0, 1\)"):
        next(take_steps(iter([wrong, *steps[0][1:]]), [0], rank=1))


def test_a_finished_run_reads_nothing(tmp_path: Path):
    stream = RankStream(planned=planned(tmp_path / "missing"), rank=0, world_size=1)

    assert list(stream.steps(5, 5)) == []


def test_planned_pairs_pickle_to_a_few_hundred_bytes(tmp_path: Path):
    stream = RankStream(planned=planned(tmp_path), rank=0, world_size=1)

    assert pickle.loads(pickle.dumps(stream)) == stream
    assert len(pickle.dumps(stream)) < 2_000
