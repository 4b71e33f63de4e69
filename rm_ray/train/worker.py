"""What Ray Train calls in every worker; light, so that data is read while the rest is imported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch

from rm_ray.config import Layout, TrainConfig
from rm_ray.data.plan import Steps
from rm_ray.data.read_ahead import read_ahead
from rm_ray.data.stream import RankStream
from rm_ray.storage import Storage
from rm_ray.train.board import BoardWriter
from rm_ray.train.determinism import ask_for_determinism, refusing_operations
from rm_ray.train.exchange import connect
from rm_ray.train.interface import describe_host
from rm_ray.train.manifest import find_checkpoint
from rm_ray.train.pulse import Heart
from rm_ray.train.staging import rescue_staged
from rm_ray.train.startup import Startup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rm_ray.scoring.accuracy import Labels
    from rm_ray.train.probes import Probes


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainJob:
    """All that a worker is told: settings, where the run is kept, and how long it is."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    run: Storage
    steps: Steps
    eval_steps: Steps | None
    use_gpu: bool
    plan_fingerprint: str
    layout: Layout
    startup: Startup
    board: Any
    run_key: str
    """What tells this run from every other."""
    attempt: int
    """Which attempt at the run this is, counted from 1."""
    skipped: frozenset[int]
    """Steps, counted from 0, that are left out."""
    probes: Probes
    """Pairs whose rewards are kept with every checkpoint."""
    eval_labels: Labels | None
    """What the held-out pairs are counted under."""
    run_began: float
    """When the run began, by the wall clock, time without any attempt left out."""

    def __repr__(self) -> str:
        """Name the attempt: Ray's dashboard shows this, and the rest holds conversations."""
        return f"attempt {self.attempt} at run '{self.config.run.name}'"


def train_loop_per_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank's share of every step; Ray Train calls it once per worker.

    Returns what the driver writes into ``result.json``, on rank 0.
    """
    job: TrainJob = settings["job"]
    job.startup.end("workers")
    if job.config.run.deterministic:
        ask_for_determinism()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    with Heart(job.board, rank) as heart, _writer(job, rank) as board:
        heart.enter("connecting", 0)
        connect(ray.train.torch.get_device(), describe_host(), on_progress=heart.beat)
        job.startup.end("network")
        heart.enter("starting", 0)
        if context.get_local_rank() == 0:
            rescue_staged(job.run, job.run_key)
        found = find_checkpoint(job.run, job.plan_fingerprint, rank=rank, world_size=world_size)
        stream: RankStream = ray.train.get_dataset_shard("train")
        first_step = found.manifest.step if found else 0
        steps = read_ahead(stream.steps(first_step, job.steps.total))
        from rm_ray.train.loop import train  # takes seconds, in which the first steps are read

        with refusing_operations():
            return train(job, found, steps, heart, board)


def _writer(job: TrainJob, rank: int) -> AbstractContextManager[BoardWriter | None]:
    return BoardWriter(job.board) if rank == 0 else nullcontext()
