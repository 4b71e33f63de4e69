"""Ray Train's entry point in every worker. Keep imports light: data loading starts first."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ray.train
import ray.train.torch

from rm_ray.batches.read_ahead import read_ahead
from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.checkpoint.staging import rescue_staged
from rm_ray.cluster.connectivity import connect
from rm_ray.cluster.process_group import describe_host
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.determinism import ask_for_determinism, refusing_operations
from rm_ray.worker.context import RayRankContext
from rm_ray.worker.job import StoredJob, TrainJob


def train_loop_per_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank's share of every step; Ray Train calls it once per worker.

    Returns the content of ``result.json``, which the driver takes from rank 0.
    """
    stored: StoredJob = settings["job"]
    job = stored.load()
    job.startup.end("workers")
    if job.config.run.deterministic:
        ask_for_determinism()
    worker = ray.train.get_context()
    rank, world_size = worker.get_world_rank(), worker.get_world_size()
    with Heartbeat(job.channel, rank) as heartbeat, _writer(job, rank) as channel:
        heartbeat.enter("connecting", 0)
        connect(ray.train.torch.get_device(), describe_host(), on_progress=heartbeat.beat)
        job.startup.end("network")
        heartbeat.enter("starting", 0)
        if worker.get_local_rank() == 0:
            rescue_staged(job.run_folder, job.run_key)
        found = find_checkpoint(
            job.run_folder, job.plan_fingerprint, rank=rank, world_size=world_size
        )
        context = RayRankContext(run_folder=job.run_folder)
        first_step = found.manifest.step if found else 0
        stream = context.dataset_shard("train")
        steps = read_ahead(stream.steps(first_step, job.steps.total))
        # Imports for seconds, while the first steps load.
        from rm_ray.worker.loop import train_worker

        if job.cores is not None:
            job.cores.use()
        with refusing_operations():
            return train_worker(job, found, steps, heartbeat, channel, context)


def _writer(job: TrainJob, rank: int) -> AbstractContextManager[ChannelWriter | None]:
    return ChannelWriter(job.channel) if rank == 0 else nullcontext()
