"""What runs alongside the workers: channel, MLflow sender, gauges, Hub mirror, evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from rm_ray.driver.trainer import streams
from rm_ray.errors import InputError, LostError, TrainingError
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.publish.mirror_actor import start_mirror
from rm_ray.tracking.channel import ChannelReader, open_channel
from rm_ray.tracking.prometheus import RunGauges
from rm_ray.tracking.sender import MetricSender, mlflow_opener
from rm_ray.tracking.target import RunDescription
from rm_ray.worker.beside.evaluator_actor import start_evaluator
from rm_ray.worker.job import TrainJob


@dataclass(frozen=True, kw_only=True)
class Companions:
    """The channel and the MLflow sender of an attempt."""

    channel: Any
    """Handle of the ``Channel`` actor."""
    channel_name: str
    sender: MetricSender


@contextmanager
def companions(
    resolved: ResolvedRun, record: dict[str, Any], *, attempt: int
) -> Iterator[Companions]:
    """Run an attempt's companions while its workers train.

    The sender stays open for the end of the run. If the attempt fails, the MLflow run is marked
    FAILED until the next attempt reopens it. The end of the run publishes what the mirror did not.
    """
    sender = MetricSender(mlflow_opener(resolved.mlflow, RunDescription.of(record)))
    channel_name = f"board-{record['key']}-{attempt}"
    channel = open_channel(channel_name)
    mirror = _start_mirror(resolved, channel_name)
    gauges = open_gauges(resolved)
    try:
        with gauges, ChannelReader(channel, sender, gauges):
            yield Companions(channel=channel, channel_name=channel_name, sender=sender)
    except (InputError, TrainingError, LostError):
        sender.end("FAILED")
        raise
    finally:
        if mirror is not None:
            ray.kill(mirror)


def _start_mirror(resolved: ResolvedRun, channel_name: str) -> Any:
    """Start the Hub mirror; return None if the run has no ``hub.repo_id``."""
    if resolved.config.hub.repo_id is None:
        return None
    last_step = resolved.plan.steps.total
    return start_mirror(channel_name, resolved.run_folder, resolved.config, last_step)


@contextmanager
def evaluator(resolved: ResolvedRun, job: TrainJob, beside: Companions) -> Iterator[Any]:
    """Run an evaluator beside the workers if the settings ask for it; yield its handle, or None."""
    if not resolved.config.evaluates_beside:
        yield None
        return
    actor = start_evaluator(beside.channel_name, job, streams(resolved))
    try:
        yield actor
    finally:
        ray.kill(actor)


def open_gauges(resolved: ResolvedRun) -> RunGauges:
    """Return the run's gauges, with the values known before the first step."""
    gauges = RunGauges(resolved.config.run.name)
    gauges.set("total_steps", resolved.plan.steps.total)
    gauges.set("workers", resolved.config.cluster.num_workers)
    return gauges
