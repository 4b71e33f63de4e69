"""The driver's part of training: what is prepared -> TorchTrainer -> fit()."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import ray.train
from ray.train.torch import TorchTrainer

from rm_ray.config import flatten
from rm_ray.data.stream import PlannedPairs
from rm_ray.errors import TrainingError, find_input_error
from rm_ray.tracking.shipping import MetricShipper
from rm_ray.tracking.target import RunDescription
from rm_ray.train.board import BoardReader, start_board
from rm_ray.train.prepare import Prepared, describe_data, in_order
from rm_ray.train.record import open_record, refuse_other_data, versions
from rm_ray.train.shards import PerRankStreams
from rm_ray.train.startup import Startup
from rm_ray.train.worker import TrainJob, train_loop_per_worker

if TYPE_CHECKING:
    from rm_ray.tracking.mlflow_run import MlflowRun

logger = logging.getLogger(__name__)

MAX_WORKER_FAILURES = 3
"""Restarts of the worker group by Ray before the run ends with the error."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What Ray returns of a run, and the thread that still feeds MLflow."""

    result: ray.train.Result
    shipper: MetricShipper


def fit(prepared: Prepared, startup: Startup) -> Fitted:
    """Run the workers until the last step is trained and the model is exported."""
    config, run = prepared.config, prepared.run
    record = open_record(prepared, describe_data(prepared))
    refuse_other_data(prepared, record)
    shipper = MetricShipper(_opening_mlflow(prepared, record["key"]))
    board = start_board()
    job = TrainJob(
        config=config,
        tokenizer=prepared.tokenizer,
        run=run,
        steps=prepared.plan.steps,
        eval_steps=prepared.eval_steps,
        use_gpu=bool(config.cluster.use_gpu),
        plan_fingerprint=prepared.identity["plan"],
        layout=prepared.plan.settings.layout,
        startup=startup,
        board=board,
    )
    workers = f"{config.cluster.num_workers} worker{'s' * (config.cluster.num_workers != 1)}"
    logger.info("starting %s for %d steps", workers, prepared.plan.steps.total)
    with BoardReader(board, shipper):
        try:
            return Fitted(result=_trainer(prepared, job).fit(), shipper=shipper)
        except ray.train.TrainingFailedError as error:
            raise _explain(error) from error
        except ray.exceptions.RayError as error:
            raise TrainingError(
                f"Ray lost the run ({type(error).__name__}: {error}); the same command goes on "
                "from its newest checkpoint"
            ) from error


def _opening_mlflow(prepared: Prepared, key: str) -> Callable[[], MlflowRun]:
    config = prepared.config
    description = RunDescription(
        name=config.run.name,
        key=key,
        params={**flatten(config.to_json()), "data_hash": prepared.train.data_hash},
        tags=versions(),
    )

    def open_run() -> MlflowRun:
        from rm_ray.tracking.mlflow_run import MlflowRun  # takes seconds, while workers train

        return MlflowRun.open(prepared.mlflow, description)

    return open_run


def _trainer(prepared: Prepared, job: TrainJob) -> TorchTrainer:
    config, storage = prepared.config, prepared.storage
    streams = {"train": PlannedPairs(cache=prepared.train.parts, settings=prepared.plan.settings)}
    if prepared.held_out is not None:
        settings = in_order(prepared.plan.settings)
        streams["eval"] = PlannedPairs(cache=prepared.held_out.parts, settings=settings)
    metric = config.checkpoint.keep_best_by
    return TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"job": job},
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
            failure_config=ray.train.FailureConfig(max_failures=MAX_WORKER_FAILURES),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=config.checkpoint.keep,
                checkpoint_score_attribute=metric,
                checkpoint_score_order=score_order(metric),
            ),
        ),
        datasets=streams,
        dataset_config=PerRankStreams(),
    )


def _explain(error: ray.train.TrainingFailedError) -> Exception:
    """Return the user's error where there is one inside, else what failed and where."""
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    found = (find_input_error(failure) for failure in failures.values())
    return next((cause for cause in found if cause), TrainingError(str(error)))


def score_order(metric: str | None) -> str:
    """Return whether more or less of a metric is better."""
    return "min" if metric is not None and metric.endswith("/loss") else "max"
