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
from rm_ray.tracking.shipping import MetricShipper, opening_mlflow
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
    run = Storage.open(folder)
    record = read_record(run)
    config = MlflowConfig(**{**record["config"]["mlflow"], "tracking_uri": tracking_uri})
    if tracking_uri is None:
        config = MlflowConfig(**record["config"]["mlflow"])
    storage = Storage(run.filesystem, run.path.rstrip("/").rpartition("/")[0])
    target = MlflowTarget.of(config, storage)
    shipper = MetricShipper(opening_mlflow(target, RunDescription.of(record)))
    history = read_journal(run)
    for item in history.records:
        shipper.send(item)
    for info in run.list(SAMPLES):
        if info.base_name.endswith(".json"):
            rows = run.read_json(f"{SAMPLES}/{info.base_name}")
            shipper.send_table(f"eval_samples/{info.base_name}", rows)
    unsent = shipper.close(patience_s)
    if shipper.refusal is not None:
        raise shipper.refusal
    if unsent or shipper.run is None:
        raise TrainingError(f"MLflow at {target.tracking_uri} did not take {unsent} items in time")
    _finish(run, record, shipper.run)
    if tracking_uri is None:
        _note(run, shipper.run.run_id)
    logger.info(
        "%d records of run '%s' are at %s",
        len(history.records),
        record["config"]["run"]["name"],
        target.tracking_uri,
    )
    return shipper.run.run_id


def _finish(run: Storage, record: dict[str, Any], opened: MlflowRun) -> None:
    """Add what a finished run ends with, and mark the run finished.

    Raises:
        TrainingError: MLflow does not take it.
    """
    result = run.read_json(RESULT)
    if result is None:
        return  # it goes on, or will
    timeline = {name: result[name] for name in ("attempts", "time")}
    documents = {"config.yaml": record["config"], "attempts.json": timeline}
    with ExitStack() as stack:
        names = [f"{PLOTS}/{info.base_name}" for info in run.list(PLOTS)]
        figures = [stack.enter_context(run.local_copy(name)) for name in names]
        try:
            opened.finish(documents, figures)
        except MlflowAwayError as error:
            raise TrainingError(f"{error}; the metrics are there, give the command again") from None


def _note(run: Storage, run_id: str) -> None:
    """Note with a finished run that its own MLflow has all of it now, and under which id."""
    result = run.read_json(RESULT)
    if result is not None:
        run.write_json(RESULT, result | {"mlflow_run_id": run_id, "mlflow_unsent": 0})


def read_journal(run: Storage) -> History:
    """Return the metrics of a run: all of them once it is finished, else its newest checkpoint's.

    That is the newest one which is whole.

    Raises:
        InputError: it has neither.
    """
    names = [HISTORY] if run.exists(HISTORY) else []
    for checkpoint in [] if names else list_checkpoints(run):
        manifest = read_manifest(run, checkpoint)  # without one it may be half copied
        if manifest is not None and find_fault(run, checkpoint, manifest, shares=0) is None:
            names.append(f"{checkpoint}/{HISTORY}")
    if names:
        return History.from_json_lines(run.read_text(names[0]).splitlines())
    raise InputError(f"'{run.path}' has no metrics yet: neither an end nor a checkpoint")
