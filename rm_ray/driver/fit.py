"""The driver's part of training: what is prepared -> TorchTrainer -> fit()."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from rm_ray.batches.stream import PlannedPairs
from rm_ray.cluster.connectivity import PARTNER_LOST, REMEDIES
from rm_ray.cluster.process_group import ProcessGroupConfig
from rm_ray.cluster.ray_cluster import count_fitting
from rm_ray.cluster.timeouts import collective_limit
from rm_ray.config.train_config import ClusterConfig
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.hang_detector import Hang, Watch
from rm_ray.errors import (
    InputError,
    LostError,
    StoppedError,
    TrainingError,
    find_final_error,
    find_lost_error,
)
from rm_ray.preflight.resolve import ResolvedRun, describe_data, in_order, write_skeleton
from rm_ray.publish.mirror_actor import start_mirror
from rm_ray.runs.layout import RUN, SKELETON
from rm_ray.runs.record import open_record, refuse_other_data
from rm_ray.storage import Storage
from rm_ray.tracking.channel import ChannelReader, open_channel
from rm_ray.tracking.heartbeat import HeartbeatReading
from rm_ray.tracking.prometheus import RunGauges
from rm_ray.tracking.sender import MetricSender, mlflow_opener
from rm_ray.tracking.target import RunDescription
from rm_ray.worker.data_config import PerRankStreams
from rm_ray.worker.entry import train_loop_per_worker
from rm_ray.worker.job import TrainJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """What rank 0 returned, and the thread that still feeds MLflow."""

    outcome: dict[str, Any]
    sender: MetricSender


def fit(
    resolved: ResolvedRun, asked: ClusterConfig, attempt_handle: AttemptHandle
) -> TrainingOutcome:
    """Run the workers until the last step is trained and the model is exported.

    ``asked`` is the cluster section before it was fitted: its number of workers may be a range.

    Raises:
        InputError, TrainingError: the workers found something that no other attempt can mend.
        LostError: they were lost.
    """
    config = resolved.config
    if not (resolved.run_folder.exists(RUN) and resolved.run_folder.exists(SKELETON)):
        write_skeleton(resolved)
    record = open_record(resolved, describe_data(resolved))
    refuse_other_data(resolved, record)
    sender = MetricSender(mlflow_opener(resolved.mlflow, RunDescription.of(record)))
    channel_name = f"board-{record['key']}-{attempt_handle.number}"
    channel = open_channel(channel_name)
    mirror = None
    if config.hub.repo_id is not None:
        mirror = start_mirror(channel_name, resolved.run_folder, config, resolved.plan.steps.total)
    job = TrainJob(
        config=config,
        tokenizer=resolved.tokenizer,
        run_folder=resolved.run_folder,
        run_key=record["key"],
        run_began=attempt_handle.run_began,
        attempt=attempt_handle.number,
        skipped=attempt_handle.skipped,
        probes=resolved.probes,
        eval_labels=resolved.eval_labels,
        steps=resolved.plan.steps,
        eval_steps=resolved.eval_steps,
        use_gpu=bool(config.cluster.use_gpu),
        plan_fingerprint=resolved.identity["plan"],
        layout=resolved.plan.settings.layout,
        startup=attempt_handle.startup,
        channel=channel,
    )
    gauges = RunGauges(config.run.name)
    gauges.set("total_steps", resolved.plan.steps.total)
    num_workers = int(config.cluster.num_workers or 1)
    gauges.set("workers", num_workers)
    workers = f"{num_workers} worker{'s' * (num_workers != 1)}"
    logger.info("starting %s for %d steps", workers, resolved.plan.steps.total)
    attempt_handle.tell({"num_workers": num_workers})
    wanted = config.cluster if asked.num_workers is None else asked
    watch = Watch(
        channel,
        num_workers=num_workers,
        count_fitting=lambda: count_fitting(wanted, held=num_workers),
        on_look=lambda heartbeats: attempt_handle.tell(_describe_progress(heartbeats, sender)),
        on_loss=lambda cause: attempt_handle.end("lost", cause),
        on_stop=lambda reason: attempt_handle.end("stopped", reason),
    )
    # Ray's own record of checkpoints, cut short by a kill, would end every later attempt.
    resolved.run_folder.delete_file(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    try:
        with (
            gauges,
            ChannelReader(channel, sender, gauges),
            attempt_handle.stoppable(watch.ask_to_stop),
            watch,
        ):
            outcome = _run(_trainer(resolved, job), watch, resolved.run_folder)
    except (InputError, TrainingError, LostError):
        sender.end("FAILED")  # until the next attempt opens it again
        raise
    finally:
        if mirror is not None:  # what it has not published, the end of the run does
            ray.kill(mirror)
    attempt_handle.tell({})  # no more pulses
    if "stopped" in outcome:
        sender.end("KILLED")
        raise StoppedError(**outcome["stopped"])
    return TrainingOutcome(outcome=outcome, sender=sender)


def _run(trainer: TorchTrainer, watch: Watch, run_folder: Storage) -> dict[str, Any]:
    """Return what rank 0 returns.

    Raises:
        InputError, TrainingError, LostError: as ``fit``.
    """
    try:
        return dict(trainer.fit().return_value or {})
    except ray.train.TrainingFailedError as error:
        raise explain(error, watch.hang, run_folder) from error
    except ray.exceptions.RayError as error:
        lost = f"Ray lost it ({type(error).__name__}: {error})"
        if watch.hang is not None:
            raise LostError(watch.hang.reason, signature=watch.hang.signature) from error
        raise LostError(lost) from error


def _describe_progress(
    heartbeats: Sequence[HeartbeatReading], sender: MetricSender
) -> dict[str, Any]:
    """Return how far an attempt is, as rank 0 says, and how far MLflow is behind."""
    beat = min(heartbeats, key=lambda one: one.beat.rank).beat
    return {
        "step": beat.step,
        "first_step": beat.first_step,
        "startup": beat.startup,
        "spent": beat.spent,
        "mlflow_unsent": sender.unsent,
    }


def _trainer(resolved: ResolvedRun, job: TrainJob) -> TorchTrainer:
    config, storage = resolved.config, resolved.storage
    patience_s = config.checkpoint.storage_patience_s
    streams = {"train": PlannedPairs(cache=resolved.train.parts, settings=resolved.plan.settings)}
    if resolved.held_out is not None:
        settings = in_order(resolved.plan.settings)
        streams["eval"] = PlannedPairs(cache=resolved.held_out.parts, settings=settings)
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
        torch_config=ProcessGroupConfig(timeout_s=round(collective_limit(patience_s))),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.cluster.num_workers,
            use_gpu=bool(config.cluster.use_gpu),
            resources_per_worker={
                "CPU": config.cluster.cpus_per_worker,
                **({"GPU": 1} if config.cluster.use_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            # The supervisor starts again, and the workers know which checkpoints are whole.
            failure_config=ray.train.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=3
            ),
        ),
        datasets=streams,
        dataset_config=PerRankStreams(),
    )


def explain(
    error: ray.train.TrainingFailedError, hang: Hang | None, run_folder: Storage
) -> Exception:
    """Return the final error where there is one inside, else what was lost and where.

    What the system refuses counts as an outage unless the run's folder can be read by now.
    """
    if hang is not None:
        return LostError(hang.reason, signature=hang.signature)
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    causes = [*failures.values(), getattr(error, "controller_failure", None)]
    final = next((cause for cause in map(find_final_error, causes) if cause), None)
    if final is not None:
        return final
    dead = [rank for rank, failure in failures.items() if _is_death(failure)]
    if dead:
        return LostError(f"rank {', '.join(map(str, sorted(dead)))} died")
    told = next((cause for cause in map(find_lost_error, causes) if cause), None)
    if told is not None:
        return told
    for rank, failure in sorted(failures.items()):
        error_there = getattr(failure, "_base_exc", failure)
        shown = f"{type(error_there).__name__}: {error_there}"
        if any(name in shown for name in _CONNECTIONS):
            continue
        traceback = getattr(failure, "_traceback_str", "")
        is_outage = isinstance(error_there, OSError) and not (
            isinstance(error_there, _ANSWERS) and _can_read(run_folder)
        )
        return LostError(
            f"rank {rank} failed: {shown}\n{traceback}",
            signature="" if is_outage else re.sub(r"\d+", "N", shown),  # addresses, sizes
            is_outage=is_outage,
        )
    if failures:
        return _explain_connections(failures)
    return _explain_start(getattr(error, "controller_failure", None) or error)


def _explain_connections(failures: Mapping[int, Exception]) -> LostError:
    """Return what was lost where every rank's error is one of the network.

    NCCL also fails by itself, as where /dev/shm is too small, and then does so again.
    """
    for rank, failure in sorted(failures.items()):
        told = str(getattr(failure, "_base_exc", failure)).strip()
        kind = _NCCL.search(told)
        if kind and not any(name in told for name in PARTNER_LOST):
            last = told.splitlines()[-1].strip()
            return LostError(
                f"NCCL failed on rank {rank}: {kind[0]}, {last}. {REMEDIES['nccl']}\n{told}",
                signature=f"NCCL: {kind[0]}",
            )
    first = str(failures[min(failures)]).strip()
    return LostError(f"the ranks lost one another, it seems\n{first}")


def _explain_start(error: Exception) -> LostError:
    """Return what was lost where the workers did not begin to train, or Ray Train failed."""
    told = str(error).strip()
    last = told.splitlines()[-1]
    kind = _RENDEZVOUS.search(told)
    if kind is None:
        return LostError(f"Ray Train failed: {last}\n{told}")
    return LostError(
        f"the workers' process group did not form: {last}. Ranks meet at rank 0, by the address "
        f"that Ray has for its machine. {REMEDIES['gloo']}\n{told}",
        signature=f"connecting: {kind[0]}",
    )


_ANSWERS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
"""Errors of a system that works, unless its storage has just gone."""


def _can_read(run_folder: Storage) -> bool:
    try:
        return run_folder.read_json(RUN) is not None
    except (OSError, InputError):
        return False


_CONNECTIONS = ("gloo/transport", "NCCL")
"""In the errors of ranks whose partner died, and in some that NCCL has of its own."""

_NCCL = re.compile(r"nccl\w+(?:Error|Argument|Usage)")

_RENDEZVOUS = re.compile("DistNetworkError|DistStoreError|connectFullMesh failed")
"""In what torch raises where ranks do not meet."""


def _is_death(failure: Exception) -> bool:
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return isinstance(failure, ray.exceptions.RayActorError)
