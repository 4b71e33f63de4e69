"""Restoring and saving as the loop does it; ``test_loop.py`` covers whole attempts."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plain_training import PlainRank, StopsAt, small_config
from small_checkpoint import write_checkpoint

from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.config.recipe import parse_config
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.history import Record
from rm_ray.runs.late_evaluations import LateEvaluation, LateEvaluations
from rm_ray.runs.manifest import Checkpoint, Manifest, find_intact
from rm_ray.storage import Storage
from rm_ray.worker.build import Compute, build_compute
from rm_ray.worker.checkpoints import (
    build_checkpointer,
    restore,
    stored_checkpoints,
    warn_of_other_workers,
)


@pytest.mark.parametrize("world_size", [2, 3])
def test_another_number_of_workers_warns_of_different_weights(world_size, caplog):
    files = {f"{kind}-{rank:05d}.safetensors": {} for kind in ("slices", "rng") for rank in (0, 1)}
    manifest = Manifest(step=4, plan_fingerprint="", metrics={}, files=files)
    with caplog.at_level(logging.WARNING):
        warn_of_other_workers(Checkpoint(name="step", manifest=manifest), world_size)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (world_size != 2)
    assert all("3 workers resume from a checkpoint of 2" in line for line in lines)


@pytest.fixture(scope="module")
def stopped(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlainRank, Compute]:
    """A run that stopped after step 5, and an engine for its next attempt."""
    folder = tmp_path_factory.mktemp("stopped")
    rank = PlainRank.make(folder, small_config(folder), skipped=frozenset({1}))
    StopsAt("training", 5).apply(rank).train()
    return PlainRank.make(folder, small_config(folder), attempt=2, skipped=frozenset({7})), (
        build_compute(rank.job)
    )


def test_a_new_run_starts_with_an_empty_state(stopped):
    rank, compute = stopped
    stored = build_checkpointer(
        rank.job, compute.engine, rank.context.report, on_wait=rank.heartbeat.beat
    ).stored
    state = restore(rank.job, None, compute.engine, stored)
    assert (state.progress.step, state.history.records) == (0, [])
    assert state.ledger.counts.tolist() == [0] * 24
    assert state.skipped == {7}
    assert stored.intact == []


def test_only_rank_0_restores_the_ledger_and_the_stored_checkpoints(stopped):
    rank, compute = stopped
    found = find_checkpoint(rank.job.run_folder, "plan")
    assert found is not None
    for number in (0, 1):
        stored = build_checkpointer(
            rank.job, compute.engine, rank.context.report, on_wait=rank.heartbeat.beat
        ).stored
        compute.engine.rank = number
        state = restore(rank.job, found, compute.engine, stored)
        compute.engine.rank = 0
        assert (state.progress.step, state.progress.episode) == (5, 24)
        assert state.skipped == {1, 7}
        assert state.ledger.counts.sum() == (24 if number == 0 else 0)
        steps = [one.manifest.step for one in stored.intact]
        assert steps == ([5, 2] if number == 0 else [])  # the newest, and the best


def test_a_resumed_run_may_begin_to_keep_losses_or_stop_keeping_them(stopped):
    rank, compute = stopped
    found = find_checkpoint(rank.job.run_folder, "plan")
    assert found is not None
    file = Path(rank.job.run_folder.join(found.name)) / "data" / "pair_losses.npy"
    kept = PairLosses(values=np.ones((2, 24), dtype=np.float32))
    for keeps, has_file in ((False, False), (True, False), (True, True), (False, True)):
        if has_file and not file.exists():
            kept.write(file)
            found.manifest.files["data/pair_losses.npy"] = {}
        config = replace(rank.job.config, run=replace(rank.job.config.run, keep_pair_losses=keeps))
        stored = build_checkpointer(
            rank.job, compute.engine, rank.context.report, on_wait=rank.heartbeat.beat
        ).stored
        state = restore(replace(rank.job, config=config), found, compute.engine, stored)
        assert (state.losses is not None) == keeps
        if keeps:
            assert np.isnan(state.losses.values).all() == (not has_file)


def test_a_checkpoint_has_only_the_metrics_of_its_step(stopped):
    rank, _ = stopped
    found = find_checkpoint(rank.job.run_folder, "plan")
    assert found is not None
    assert found.manifest.metrics["episode"] == 24
    assert "eval/rm/loss" not in found.manifest.metrics  # step 4 was evaluated, step 5 was not


def test_a_checkpoint_stays_until_an_evaluator_has_evaluated_it(tmp_path: Path):
    config = parse_config(
        {
            "data": {"eval": ["a.jsonl"]},
            "evaluation": {"where": "beside"},
            "checkpoint": {"every_steps": 2, "keep": 2, "keep_best_by": "eval/rm/loss"},
        }
    )
    run_folder = Storage.open(str(tmp_path))
    late = LateEvaluations(run_folder=run_folder, config=config, last_step=20)
    stored = stored_checkpoints(run_folder, config, attempt=1, last_step=20)
    for step in (2, 4, 6, 8):
        write_checkpoint(run_folder, step)
    stored.intact = [*find_intact(run_folder, list_checkpoints(run_folder))]

    def evaluate(step: int, loss: float) -> list[int]:
        metrics = {"eval/rm/loss": loss}
        record = Record(step=step, kind="eval", episode=1, hours=0.0, metrics=metrics)
        late.write(LateEvaluation(step=step, record=record))
        stored.prune()
        return sorted(found.manifest.step for found in stored.intact)

    assert evaluate(2, 0.5) == [2, 4, 6, 8]  # the best so far
    assert evaluate(4, 0.4) == [4, 6, 8]
    assert evaluate(6, 0.6) == [4, 8]
    assert evaluate(8, 0.7) == [4, 8]
    assert stored.best == run_folder.join("checkpoint_00000004_0001")


@pytest.mark.parametrize("num_reads", range(6))
def test_an_evaluation_that_ends_during_retention_does_not_lose_its_checkpoint(
    num_reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = parse_config(
        {
            "data": {"eval": ["a.jsonl"]},
            "evaluation": {"where": "beside"},
            "checkpoint": {"every_steps": 2, "keep": 2, "keep_best_by": "eval/rm/loss"},
        }
    )
    run_folder = Storage.open(str(tmp_path))
    stored = stored_checkpoints(run_folder, config, attempt=1, last_step=20)
    for step in (2, 4, 6):
        write_checkpoint(run_folder, step)
    stored.intact = [*find_intact(run_folder, list_checkpoints(run_folder))]
    late = LateEvaluations(run_folder=run_folder, config=config, last_step=20)

    def finish(step: int, loss: float) -> None:
        metrics = {"eval/rm/loss": loss}
        record = Record(step=step, kind="eval", episode=1, hours=0.0, metrics=metrics)
        late.write(LateEvaluation(step=step, record=record))

    read, count = LateEvaluations.read, itertools.count()

    def read_and_finish(one: LateEvaluations) -> dict[int, LateEvaluation]:
        if next(count) == num_reads:
            finish(4, 0.1)
        return read(one)

    finish(2, 0.5)
    monkeypatch.setattr(LateEvaluations, "read", read_and_finish)
    stored.prune()
    assert 4 in [found.manifest.step for found in stored.intact]
    stored.prune()
    assert stored.best == run_folder.join("checkpoint_00000004_0001")
