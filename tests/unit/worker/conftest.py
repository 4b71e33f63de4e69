"""Fixtures for tests of the worker."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plain_training import PlainRank, reset_accelerator, small_config

from rm_ray.worker.build import build_compute
from rm_ray.worker.checkpoints import build_checkpointer, restore
from rm_ray.worker.loop import TrainingLoop


@pytest.fixture(autouse=True, scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that stands for the machine's disk; also resets the number of threads."""
    before, num_threads = tempfile.tempdir, torch.get_num_threads()
    tempfile.tempdir = str(tmp_path_factory.mktemp("machine"))
    yield Path(tempfile.tempdir)
    tempfile.tempdir = before
    torch.set_num_threads(num_threads)


@pytest.fixture
def rank(tmp_path: Path) -> PlainRank:
    """The only rank of a small run."""
    return PlainRank.make(tmp_path, small_config(tmp_path))


@pytest.fixture
def loop(rank: PlainRank) -> TrainingLoop:
    """A loop, ready to train."""
    reset_accelerator()
    job, context = rank.job, rank.context
    compute = build_compute(job)
    checkpointer = build_checkpointer(
        job, compute.engine, context.report, on_wait=rank.heartbeat.beat
    )
    state = restore(job, None, compute.engine, checkpointer.stored)
    loop = TrainingLoop(
        job,
        compute,
        state,
        checkpointer,
        heartbeat=rank.heartbeat,
        channel=rank.channel,
        context=context,
    )
    loop.clocks.start()
    return loop
