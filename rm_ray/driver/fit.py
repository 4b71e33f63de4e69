"""The workers of an attempt and their companions, from start to outcome."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from rm_ray.cluster.cores import Cores, own_cores
from rm_ray.cluster.failures import explain
from rm_ray.cluster.ray_cluster import count_fitting
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.companions import Companions, companions, evaluator
from rm_ray.driver.run_record import begin_record
from rm_ray.driver.stop_request import StopRequest
from rm_ray.driver.trainer import build_job, build_trainer
from rm_ray.driver.watch import Watch
from rm_ray.errors import InputError, LostError, StoppedError
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.runs.late_evaluations import read_records
from rm_ray.runs.layout import RUN
from rm_ray.storage import Storage
from rm_ray.tracking.sender import MetricSender
from rm_ray.worker.job import TrainJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """Rank 0's return value, and the sender that still feeds MLflow."""

    outcome: dict[str, Any]
    sender: MetricSender


def fit(
    resolved: ResolvedRun, asked: ClusterConfig, attempt_handle: AttemptHandle
) -> TrainingOutcome:
    """Run the workers until the last step is trained and the model is exported.

    ``asked`` is the cluster section as configured; its number of workers may be a range.

    Raises:
        InputError, TrainingError: the workers failed in a way that a retry cannot fix.
        LostError: the workers were lost.
        StoppedError: the workers stopped as requested.
    """
    record = begin_record(resolved)
    # If a kill truncated Ray's own checkpoint record, every later attempt would fail on it.
    resolved.run_folder.delete_file(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    with companions(resolved, record, attempt=attempt_handle.number) as beside:
        job = build_job(
            resolved,
            attempt_handle,
            run_key=record["key"],
            channel=beside.channel,
            base_hash=record.get("base_hash", ""),
        )
        _announce(resolved, attempt_handle)
        stop_request = StopRequest(beside.channel)
        watch = _watch(resolved, asked, attempt_handle, stop_request, beside)
        with evaluator(resolved, job, beside) as evaluating:
            with attempt_handle.stoppable(stop_request), watch, cores_of(resolved) as cores:
                trainer = build_trainer(resolved, replace(job, cores=cores))
                outcome = run_workers(trainer, watch, resolved.run_folder)
            attempt_handle.tell({})  # no more heartbeats
            if "history" in outcome:  # the last step is trained
                outcome = add_late_evaluations(outcome, job, evaluating, beside.channel)
    if "stopped" in outcome:
        beside.sender.end("KILLED")
        raise StoppedError(**outcome["stopped"])
    return TrainingOutcome(outcome=outcome, sender=beside.sender)


def cores_of(resolved: ResolvedRun) -> AbstractContextManager[Cores | None]:
    """Return a lone worker's own cores while it trains, on a small machine without GPUs.

    Several workers would wait for the threads between them, which are no Python threads.
    """
    cluster = resolved.config.cluster
    if cluster.use_gpu or cluster.num_workers > 1:
        return nullcontext()
    return own_cores(cluster.cpus_per_worker)


def add_late_evaluations(
    outcome: dict[str, Any], job: TrainJob, evaluating: Any, channel: Any
) -> dict[str, Any]:
    """Return rank 0's outcome with what was evaluated beside training, by any attempt.

    Waits for what is pending if an evaluator is there (``evaluating`` is not None).

    Raises:
        LostError, OSError: as for ``await_evaluations``.
    """
    if evaluating is None and not read_records(job.run_folder):
        return outcome
    from rm_ray.worker.beside.ending import await_evaluations, settle_evaluations

    if evaluating is not None:
        await_evaluations(job, evaluating, channel)
    return settle_evaluations(job, outcome)


def _announce(resolved: ResolvedRun, attempt_handle: AttemptHandle) -> None:
    num_workers = resolved.config.cluster.num_workers
    workers = f"{num_workers} worker{'s' * (num_workers != 1)}"
    logger.info("starting %s for %d steps", workers, resolved.plan.steps.total)
    attempt_handle.tell({"num_workers": num_workers})


def _watch(
    resolved: ResolvedRun,
    asked: ClusterConfig,
    attempt_handle: AttemptHandle,
    stop_request: StopRequest,
    beside: Companions,
) -> Watch:
    """Return the watch over the workers; they may grow to the number in ``asked``."""
    cluster = resolved.config.cluster
    wanted = cluster if asked.num_workers is None else asked
    return Watch(
        beside.channel,
        attempt_handle,
        stop_request,
        beside.sender,
        num_workers=cluster.num_workers,
        count_fitting=lambda: count_fitting(
            wanted,
            held=cluster.num_workers,
            evaluator_cpus=resolved.config.evaluator_cpus,
        ),
    )


def run_workers(trainer: TorchTrainer, watch: Watch, run_folder: Storage) -> dict[str, Any]:
    """Run the workers; return rank 0's return value.

    Raises:
        InputError, TrainingError, LostError: as for ``fit``.
    """
    try:
        return dict(trainer.fit().return_value or {})
    except ray.train.TrainingFailedError as error:
        hang = watch.hang.error if watch.hang is not None else None
        raise explain(error, can_read=lambda: can_read(run_folder), hang=hang) from error
    except ray.exceptions.RayError as error:
        if watch.hang is not None:
            raise watch.hang.error from error
        raise LostError(f"Ray failed ({type(error).__name__}: {error})") from error


def can_read(run_folder: Storage) -> bool:
    """Return whether the run's record can be read from the storage."""
    try:
        return run_folder.read_json(RUN) is not None
    except (OSError, InputError):
        return False
