"""Backfill of MLflow with the metrics it is missing."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.errors import InputError, MlflowAwayError, TrainingError
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.history import History
from rm_ray.runs.late_evaluations import merge_records, read_records
from rm_ray.runs.layout import HISTORY, PLOTS, RESULT, read_record
from rm_ray.runs.manifest import find_intact
from rm_ray.storage import Storage
from rm_ray.tracking.samples import read_samples
from rm_ray.tracking.sender import MetricSender, mlflow_opener
from rm_ray.tracking.target import MlflowTarget, RunDescription

if TYPE_CHECKING:
    from rm_ray.tracking.mlflow_run import MlflowRun

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0


def backfill(folder: str, tracking_uri: str | None, *, patience_s: float = PATIENCE_S) -> str:
    """Log a run's metrics and samples; return its MLflow run id.

    ``folder`` is the run's path or URI; ``tracking_uri`` defaults to the run's own.

    Raises:
        InputError: the folder holds no run, or the run has no metrics yet.
        TrainingError: MLflow did not accept everything in time.
    """
    run_folder = Storage.open(folder)
    record, history = read_record(run_folder), read_history(run_folder)
    target = _find_target(run_folder, record, tracking_uri)
    sender = MetricSender(mlflow_opener(target, RunDescription.of(record)))
    for item in history.records:
        sender.send(item)
    for table in read_samples(run_folder):
        sender.send_table(*table)
    unsent = sender.close(patience_s)
    if sender.refusal is not None:
        raise sender.refusal
    if unsent or sender.mlflow_run is None:
        raise TrainingError(
            f"MLflow at {target.tracking_uri} did not accept {unsent} items in time"
        )
    _finish(run_folder, record, sender.mlflow_run)
    if tracking_uri is None:
        _mark_complete(run_folder, sender.mlflow_run.run_id)
    logger.info(
        "MLflow has all %d records of run '%s': %s",
        len(history.records),
        record["config"]["run"]["name"],
        target.tracking_uri,
    )
    return sender.mlflow_run.run_id


def _find_target(
    run_folder: Storage, record: dict[str, Any], tracking_uri: str | None
) -> MlflowTarget:
    config = MlflowConfig(**record["config"]["mlflow"])
    if tracking_uri is not None:
        config = replace(config, tracking_uri=tracking_uri)
    parent = run_folder.path.rstrip("/").rpartition("/")[0]
    return MlflowTarget.of(config, Storage(run_folder.filesystem, parent))


def _finish(run_folder: Storage, record: dict[str, Any], mlflow_run: MlflowRun) -> None:
    """Add a finished run's documents and plots, and mark it finished in MLflow.

    Raises:
        TrainingError: MLflow does not accept them.
    """
    result = run_folder.read_json(RESULT)
    if result is None:
        return  # the run is not finished
    timeline = {name: result[name] for name in ("attempts", "time")}
    documents = {"config.yaml": record["config"], "attempts.json": timeline}
    with ExitStack() as stack:
        names = [f"{PLOTS}/{entry.name}" for entry in run_folder.list(PLOTS)]
        figures = [stack.enter_context(run_folder.local_copy(name)) for name in names]
        try:
            mlflow_run.finish(documents, figures)
        except MlflowAwayError as error:
            raise TrainingError(f"{error}; the metrics were sent, rerun the command") from None


def _mark_complete(run_folder: Storage, run_id: str) -> None:
    """Record in a finished run's result that MLflow has all of it, under this run id."""
    result = run_folder.read_json(RESULT)
    if result is not None:
        run_folder.write_json(RESULT, result | {"mlflow_run_id": run_id, "mlflow_unsent": 0})


def read_history(run_folder: Storage) -> History:
    """Return the metrics of a finished run, otherwise those in its newest intact checkpoint.

    Those of evaluations beside training are added.

    Raises:
        InputError: the run has neither.
    """
    if run_folder.exists(HISTORY):
        name = HISTORY
    elif found := next(find_intact(run_folder, list_checkpoints(run_folder)), None):
        name = f"{found.name}/{HISTORY}"
    else:
        raise InputError(
            f"'{run_folder.path}' has no metrics yet: the run is not finished and has no intact "
            "checkpoint"
        )
    history = History.from_json_lines(run_folder.read_text(name).splitlines())
    return merge_records(history, read_records(run_folder))
