"""Restoring and saving as the loop does it; ``test_loop.py`` covers whole attempts."""

import logging
from pathlib import Path

import pytest
from plain_training import PlainRank, StopsAt, small_config

from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.runs.manifest import Checkpoint, Manifest
from rm_ray.worker.build import Compute, build_compute
from rm_ray.worker.checkpoints import build_checkpointer, restore, warn_of_other_workers


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


def test_a_checkpoint_has_only_the_metrics_of_its_step(stopped):
    rank, _ = stopped
    found = find_checkpoint(rank.job.run_folder, "plan")
    assert found is not None
    assert found.manifest.metrics["episode"] == 24
    assert "eval/rm/loss" not in found.manifest.metrics  # step 4 was evaluated, step 5 was not
