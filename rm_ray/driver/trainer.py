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
from rm_ray.cluster.exchange import PARTNER_LOST, REMEDIES
from rm_ray.cluster.limits import collective_limit
from rm_ray.cluster.rendezvous import RayInterface
from rm_ray.cluster.session import count_fitting
from rm_ray.config.train_config import ClusterConfig
from rm_ray.driver.going import Going
from rm_ray.driver.watch import Stuck, Watch
from rm_ray.errors import (
    InputError,
    LostError,
    StoppedError,
    TrainingError,
    find_final_error,
    find_lost_error,
)
from rm_ray.preflight.prepare import Prepared, describe_data, in_order, write_skeleton
from rm_ray.publish.actor import start_mirror
from rm_ray.runs.layout import RUN, SKELETON
from rm_ray.runs.record import open_record, refuse_other_data
from rm_ray.storage import Storage
from rm_ray.tracking.board import BoardReader, start_board
from rm_ray.tracking.gauges import RunGauges
from rm_ray.tracking.heartbeat import Felt
from rm_ray.tracking.shipping import MetricShipper, opening_mlflow
from rm_ray.tracking.target import RunDescription
from rm_ray.worker.job import TrainJob
from rm_ray.worker.shards import PerRankStreams
from rm_ray.worker.worker import train_loop_per_worker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What rank 0 returned, and the thread that still feeds MLflow."""

    outcome: dict[str, Any]
    shipper: MetricShipper


def fit(prepared: Prepared, asked: ClusterConfig, going: Going) -> Fitted:
    """Run the workers until the last step is trained and the model is exported.

    ``asked`` is the cluster section before it was fitted: its number of workers may be a range.

    Raises:
        InputError, TrainingError: the workers found something that no other attempt can mend.
        LostError: they were lost.
    """
    config = prepared.config
    if not (prepared.run.exists(RUN) and prepared.run.exists(SKELETON)):
        write_skeleton(prepared)
    record = open_record(prepared, describe_data(prepared))
    refuse_other_data(prepared, record)
    shipper = MetricShipper(opening_mlflow(prepared.mlflow, RunDescription.of(record)))
    board_name = f"board-{record['key']}-{going.number}"
    board = start_board(board_name)
    mirror = None
    if config.hub.repo_id is not None:
        mirror = start_mirror(board_name, prepared.run, config, prepared.plan.steps.total)
    job = TrainJob(
        config=config,
        tokenizer=prepared.tokenizer,
        run=prepared.run,
        run_key=record["key"],
        run_began=going.run_began,
        attempt=going.number,
        skipped=going.skipped,
        probes=prepared.probes,
        eval_labels=prepared.eval_labels,
        steps=prepared.plan.steps,
        eval_steps=prepared.eval_steps,
        use_gpu=bool(config.cluster.use_gpu),
        plan_fingerprint=prepared.identity["plan"],
        layout=prepared.plan.settings.layout,
        startup=going.startup,
        board=board,
    )
    gauges = RunGauges(config.run.name)
    gauges.set("total_steps", prepared.plan.steps.total)
    num_workers = int(config.cluster.num_workers or 1)
    gauges.set("workers", num_workers)
    workers = f"{num_workers} worker{'s' * (num_workers != 1)}"
    logger.info("starting %s for %d steps", workers, prepared.plan.steps.total)
    going.tell({"num_workers": num_workers})
    wanted = config.cluster if asked.num_workers is None else asked
    watch = Watch(
        board,
        num_workers=num_workers,
        count_fitting=lambda: count_fitting(wanted, held=num_workers),
        on_look=lambda felt: going.tell(_describe_pulses(felt, shipper)),
        on_loss=lambda cause: going.end("lost", cause),
        on_stop=lambda reason: going.end("stopped", reason),
    )
    # Ray's own record of checkpoints, cut short by a kill, would end every later attempt.
    prepared.run.delete_file(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    try:
        with gauges, BoardReader(board, shipper, gauges), going.stoppable(watch.ask_to_stop), watch:
            outcome = _run(_trainer(prepared, job), watch, prepared.run)
    except (InputError, TrainingError, LostError):
        shipper.end("FAILED")  # until the next attempt opens it again
        raise
    finally:
        if mirror is not None:  # what it has not published, the end of the run does
            ray.kill(mirror)
    going.tell({})  # no more pulses
    if "stopped" in outcome:
        shipper.end("KILLED")
        raise StoppedError(**outcome["stopped"])
    return Fitted(outcome=outcome, shipper=shipper)


def _run(trainer: TorchTrainer, watch: Watch, run: Storage) -> dict[str, Any]:
    """Return what rank 0 returns.

    Raises:
        InputError, TrainingError, LostError: as ``fit``.
    """
    try:
        return dict(trainer.fit().return_value or {})
    except ray.train.TrainingFailedError as error:
        raise explain(error, watch.stuck, run) from error
    except ray.exceptions.RayError as error:
        lost = f"Ray lost it ({type(error).__name__}: {error})"
        if watch.stuck is not None:
            raise LostError(watch.stuck.reason, signature=watch.stuck.signature) from error
        raise LostError(lost) from error


def _describe_pulses(felt: Sequence[Felt], shipper: MetricShipper) -> dict[str, Any]:
    """Return how far an attempt is, as rank 0 says, and how far MLflow is behind."""
    pulse = min(felt, key=lambda one: one.pulse.rank).pulse
    return {
        "step": pulse.step,
        "first_step": pulse.first_step,
        "startup": pulse.startup,
        "spent": pulse.spent,
        "mlflow_unsent": shipper.unsent,
    }


def _trainer(prepared: Prepared, job: TrainJob) -> TorchTrainer:
    config, storage = prepared.config, prepared.storage
    patience_s = config.checkpoint.storage_patience_s
    streams = {"train": PlannedPairs(cache=prepared.train.parts, settings=prepared.plan.settings)}
    if prepared.held_out is not None:
        settings = in_order(prepared.plan.settings)
        streams["eval"] = PlannedPairs(cache=prepared.held_out.parts, settings=settings)
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
        torch_config=RayInterface(timeout_s=round(collective_limit(patience_s))),
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


def explain(error: ray.train.TrainingFailedError, stuck: Stuck | None, run: Storage) -> Exception:
    """Return the final error where there is one inside, else what was lost and where.

    What the system refuses counts as an outage unless the run's folder can be read by now.
    """
    if stuck is not None:
        return LostError(stuck.reason, signature=stuck.signature)
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
            isinstance(error_there, _ANSWERS) and _can_read(run)
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


def _can_read(run: Storage) -> bool:
    try:
        return run.read_json(RUN) is not None
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
