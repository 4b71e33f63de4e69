"""Brings a run's journal to MLflow, whatever of it is there already."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rm_ray.config.train_config import MlflowConfig
from rm_ray.errors import InputError, TrainingError
from rm_ray.runs.attempts import list_checkpoints
from rm_ray.runs.history import History
from rm_ray.runs.layout import HISTORY, PLOTS, RESULT, SAMPLES, read_record
from rm_ray.runs.manifest import find_fault, read_manifest
from rm_ray.storage import Storage
from rm_ray.tracking.sender import MetricSender, mlflow_opener
from rm_ray.tracking.target import MlflowAwayError, MlflowTarget, RunDescription

if TYPE_CHECKING:
    from rm_ray.tracking.mlflow_run import MlflowRun

logger = logging.getLogger(__name__)

PATIENCE_S = 600.0


def replay(folder: str, tracking_uri: str | None, *, patience_s: float = PATIENCE_S) -> str:
    """Log a run's metrics and samples; return its id in MLflow.

    ``folder`` is the run's, as a path or a URI. Without a ``tracking_uri`` it is the run's own.

    Raises:
        InputError: there is no run in the folder, or it has no journal yet.
        TrainingError: MLflow did not take everything in time.
    """
    run_folder = Storage.open(folder)
    record = read_record(run_folder)
    config = MlflowConfig(**{**record["config"]["mlflow"], "tracking_uri": tracking_uri})
    if tracking_uri is None:
        config = MlflowConfig(**record["config"]["mlflow"])
    storage = Storage(run_folder.filesystem, run_folder.path.rstrip("/").rpartition("/")[0])
    target = MlflowTarget.of(config, storage)
    sender = MetricSender(mlflow_opener(target, RunDescription.of(record)))
    history = read_journal(run_folder)
    for item in history.records:
        sender.send(item)
    for info in run_folder.list(SAMPLES):
        if info.base_name.endswith(".json"):
            rows = run_folder.read_json(f"{SAMPLES}/{info.base_name}")
            sender.send_table(f"eval_samples/{info.base_name}", rows)
    unsent = sender.close(patience_s)
    if sender.refusal is not None:
        raise sender.refusal
    if unsent or sender.mlflow_run is None:
        raise TrainingError(f"MLflow at {target.tracking_uri} did not take {unsent} items in time")
    _finish(run_folder, record, sender.mlflow_run)
    if tracking_uri is None:
        _note(run_folder, sender.mlflow_run.run_id)
    logger.info(
        "%d records of run '%s' are at %s",
        len(history.records),
        record["config"]["run"]["name"],
        target.tracking_uri,
    )
    return sender.mlflow_run.run_id


def _finish(run_folder: Storage, record: dict[str, Any], opened: MlflowRun) -> None:
    """Add what a finished run ends with, and mark the run finished.

    Raises:
        TrainingError: MLflow does not take it.
    """
    result = run_folder.read_json(RESULT)
    if result is None:
        return  # it goes on, or will
    timeline = {name: result[name] for name in ("attempts", "time")}
    documents = {"config.yaml": record["config"], "attempts.json": timeline}
    with ExitStack() as stack:
        names = [f"{PLOTS}/{info.base_name}" for info in run_folder.list(PLOTS)]
        figures = [stack.enter_context(run_folder.local_copy(name)) for name in names]
        try:
            opened.finish(documents, figures)
        except MlflowAwayError as error:
            raise TrainingError(f"{error}; the metrics are there, give the command again") from None


def _note(run_folder: Storage, run_id: str) -> None:
    """Note with a finished run that its own MLflow has all of it now, and under which id."""
    result = run_folder.read_json(RESULT)
    if result is not None:
        run_folder.write_json(RESULT, result | {"mlflow_run_id": run_id, "mlflow_unsent": 0})


def read_journal(run_folder: Storage) -> History:
    """Return the metrics of a run: all of them once it is finished, else its newest checkpoint's.

    That is the newest one which is whole.

    Raises:
        InputError: it has neither.
    """
    names = [HISTORY] if run_folder.exists(HISTORY) else []
    for checkpoint in [] if names else list_checkpoints(run_folder):
        manifest = read_manifest(run_folder, checkpoint)  # without one it may be half copied
        if manifest is not None and find_fault(run_folder, checkpoint, manifest, shares=0) is None:
            names.append(f"{checkpoint}/{HISTORY}")
    if names:
        return History.from_json_lines(run_folder.read_text(names[0]).splitlines())
    raise InputError(f"'{run_folder.path}' has no metrics yet: neither an end nor a checkpoint")
