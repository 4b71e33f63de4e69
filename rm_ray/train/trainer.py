"""The driver: config -> token caches, plan and TorchTrainer -> fit() -> result.json."""

from __future__ import annotations

import logging
import platform
import tempfile
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from rm_ray.config import TrainConfig, flatten
from rm_ray.data.stream import PerRankStreams, PlannedPairs
from rm_ray.data.token_table import open_table
from rm_ray.errors import InputError, find_input_error
from rm_ray.storage import Storage
from rm_ray.tracking.history import History
from rm_ray.tracking.mlflow_run import fail_run, finish_run, open_run
from rm_ray.tracking.plots import plot_run
from rm_ray.train.board import BoardReader, start_board
from rm_ray.train.prepare import Prepared, describe_data, describe_run, in_order, prepare
from rm_ray.train.session import ray_cluster
from rm_ray.train.startup import Startup
from rm_ray.train.worker import TrainJob, train_loop_per_worker

logger = logging.getLogger(__name__)

RUN, RESULT, HISTORY, PLOTS = "run.json", "result.json", "history.jsonl", "plots"

MAX_WORKER_FAILURES = 3
"""Restarts of the worker group by Ray before the run ends with the error."""

_MAY_CHANGE = ("cluster.num_workers", "cluster.use_gpu", "cluster.cpus_per_worker")
"""Fields that a resumed run may change: what trains, not what is trained."""


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Prepare everything, train nothing; return what a run would do."""
    with ray_cluster(config.cluster):
        return describe_run(prepare(config))


def train(config: TrainConfig, startup: Startup | None = None) -> dict[str, Any]:
    """Train to the end, or go on where the run of this name stopped; return its ``result.json``.

    Raises:
        InputError: something given cannot be trained on; nothing has been trained.
        TrainingError: training began and could not go on.
    """
    storage = Storage.open(config.run.storage_path)
    storage.check_writable()
    run = storage.folder(config.run.name)
    refuse_other_config(run, config)
    if (result := run.read_json(RESULT)) is not None:
        logger.info("run '%s' is finished; give another --run.name to train anew", config.run.name)
        return dict(result)
    startup = startup or Startup()
    with ray_cluster(config.cluster):
        startup.end("Ray")
        prepared = prepare(config)
        startup.end("data and plan")
        result = fit(prepared, startup)
    return finish(prepared, result)


class TrainingError(RuntimeError):
    """Training began and could not go on; the run's checkpoints are as they were."""


def refuse_other_config(run: Storage, config: TrainConfig) -> None:
    """Compare with what the run of this name began with.

    Raises:
        InputError: naming each field that differs, with both values.
    """
    started = run.read_json(RUN)
    if started is None:
        return
    before, now = flatten(started["config"]), flatten(config.to_json())
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in _MAY_CHANGE
    ]
    if differing:
        raise InputError(
            f"run '{config.run.name}' in {run.path} began with another configuration: "
            f"{'; '.join(differing)}. Resume it with the same one, or choose another --run.name"
        )


def fit(prepared: Prepared, startup: Startup) -> ray.train.Result:
    """Run the workers until the last step is trained and the model is exported."""
    config, run = prepared.config, prepared.run
    record = open_record(prepared)
    refuse_other_data(prepared, record)
    run_id = open_run(
        prepared.mlflow,
        name=config.run.name,
        key=record["key"],
        params={**flatten(config.to_json()), "data_hash": prepared.train.data_hash},
        tags=versions(),
    )
    record["mlflow_run_id"] = run_id or record.get("mlflow_run_id")
    run.write_json(RUN, record)
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
        mlflow=prepared.mlflow,
        mlflow_run_id=record["mlflow_run_id"],
        board=board,
    )
    workers = f"{config.cluster.num_workers} worker{'s' * (config.cluster.num_workers != 1)}"
    logger.info("starting %s for %d steps", workers, prepared.plan.steps.total)
    with BoardReader(board):
        try:
            return _trainer(prepared, job).fit()
        except ray.train.TrainingFailedError as error:
            raise _explain(error) from error
        except ray.exceptions.RayError as error:
            raise TrainingError(
                f"Ray lost the run ({type(error).__name__}: {error}); the same command goes on "
                "from its newest checkpoint"
            ) from error


def open_record(prepared: Prepared) -> dict[str, Any]:
    """Return what is known of the run since its beginning, which may be now."""
    record = prepared.run.read_json(RUN)
    if record is None:
        record = {
            "key": uuid.uuid4().hex,
            "config": prepared.config.to_json(),
            "identity": prepared.identity,
            "data": describe_data(prepared),
            "versions": versions(),
        }
        prepared.run.write_json(RUN, record)
    return dict(record)


def refuse_other_data(prepared: Prepared, record: dict[str, Any]) -> None:
    """Compare pairs, tokens and shards with those that the run of this name began with.

    Raises:
        InputError: saying what differs.
    """
    cluster, before = prepared.config.cluster, record["config"]["cluster"]
    then, now = record["identity"], prepared.identity
    differing = [name for name in now if then.get(name) != now[name]]
    if differing:
        raise InputError(
            f"run '{prepared.config.run.name}' began with other pairs, tokenizer or chat template "
            f"than those of now (differing: {', '.join(differing)}), though its configuration is "
            "the same; restore them, or choose another --run.name"
        )
    if cluster.zero_stage > 0 and cluster.num_workers != before["num_workers"]:
        raise InputError(
            f"cluster.num_workers is {cluster.num_workers}, but the ZeRO-{cluster.zero_stage} "
            f"state of run '{prepared.config.run.name}' is sharded over {before['num_workers']}; "
            "resume with that many"
        )


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    packages = ("torch", "ray", "transformers", "accelerate", "deepspeed", "liger-kernel")
    found = {f"version.{name}": version(name) for name in packages}
    return {**found, "version.python": platform.python_version()}


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


def score_order(metric: str | None) -> str:
    """Return whether more or less of a metric is better."""
    return "min" if metric is not None and metric.endswith("/loss") else "max"


def _explain(error: ray.train.TrainingFailedError) -> Exception:
    """Return the user's error where there is one inside, else what failed and where."""
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    found = (find_input_error(failure) for failure in failures.values())
    return next((cause for cause in found if cause), TrainingError(str(error)))


def finish(prepared: Prepared, fitted: ray.train.Result) -> dict[str, Any]:
    """Write history, plots and ``result.json``, and complete the MLflow run.

    Raises:
        TrainingError: the loss was not finite; names the pairs.
    """
    config, run = prepared.config, prepared.run
    outcome = dict(fitted.return_value or {})
    run_id = run.read_json(RUN)["mlflow_run_id"]
    if "not_finite" in outcome:
        if run_id is not None:
            fail_run(prepared.mlflow, run_id)
        raise TrainingError(_describe_not_finite(prepared, outcome["not_finite"]))
    history = History.from_json_lines(outcome.pop("history").splitlines())
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        figures = plot_run(history.records, f"{config.run.name}", Path(folder))
        run.upload(Path(folder), PLOTS)
        if run_id is not None:
            finish_run(
                prepared.mlflow,
                run_id,
                history=history.records,
                config=config.to_json(),
                refused=prepared.row_counts,
                figures=figures,
            )
    run.write_text(HISTORY, history.to_json_lines())
    result = {
        "name": config.run.name,
        **outcome,
        "train_pairs": prepared.train.num_pairs,
        "eval_pairs": prepared.held_out.num_pairs if prepared.held_out else 0,
        "refused": prepared.refused,
        "workers": config.cluster.num_workers,
        "mlflow_run_id": run_id,
        "mlflow_tracking_uri": prepared.mlflow.tracking_uri,
        "mlflow_view": prepared.mlflow.view_command,
        "best_checkpoint": _best(fitted, config.checkpoint.keep_best_by),
        "last_checkpoint": fitted.checkpoint.path if fitted.checkpoint else None,
        "plots": run.join(PLOTS),
        "folder": run.path,
    }
    run.write_json(RESULT, result)
    return result


def _best(fitted: ray.train.Result, metric: str | None) -> str | None:
    """Return the checkpoint with the best metric; the last one where none is set."""
    if metric is None or not fitted.best_checkpoints:
        return fitted.checkpoint.path if fitted.checkpoint else None
    pick = min if score_order(metric) == "min" else max
    checkpoint, _ = pick(fitted.best_checkpoints, key=lambda item: item[1][metric])
    return str(checkpoint.path)


def _describe_not_finite(prepared: Prepared, found: dict[str, Any]) -> str:
    table = open_table(prepared.train.parts)
    ids = [table.pair_id(pair) for pair in found["pairs"]]
    shown = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
    return (
        f"the loss or gradient of step {found['step']} is not a finite number, so training "
        f"stopped. Pairs at fault: {shown}. Look at them, or lower optimizer.learning_rate; the "
        "checkpoints before it are kept"
    )
