"""The MLflow run: opened once, found again after a resume, fed in the background."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from rm_ray.tracking.history import Record

logger = logging.getLogger(__name__)

RUN_TAG = "rm_ray.run"
"""Tag that tells a run of ours, by the key that it was given at its beginning."""

UNREACHABLE = (MlflowException, OSError, ImportError)
"""What a call raises when MLflow is away or refuses, or a database's driver is not installed."""

_MARKER = {"train": "episode", "eval": "eval/rm/loss"}
"""A metric that every record of a kind has, to ask MLflow how far it got."""


@dataclass(frozen=True, kw_only=True)
class MlflowTarget:
    """Where a run's metrics go."""

    tracking_uri: str
    experiment: str

    def client(self) -> mlflow.MlflowClient:
        """Return a client that gives up in seconds instead of minutes."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return mlflow.MlflowClient(self.tracking_uri)

    @property
    def view_command(self) -> str:
        """The command that shows the runs in a browser, or the address that does already."""
        if self.tracking_uri.startswith("http"):
            return self.tracking_uri
        start = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {sys.executable} -m mlflow ui"
        return f"{start} --backend-store-uri {self.tracking_uri}"


def open_run(
    target: MlflowTarget, *, name: str, key: str, params: dict[str, Any], tags: dict[str, str]
) -> str | None:
    """Find the run with this key or create it; return its id, or None where MLflow is away."""
    try:
        client = target.client()
        experiment = client.get_experiment_by_name(target.experiment)
        experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else client.create_experiment(
                target.experiment, artifact_location=_artifact_location(target.tracking_uri)
            )
        )
        found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{key}'")
        if found:
            run_id = str(found[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            created = client.create_run(experiment_id, run_name=name, tags={RUN_TAG: key})
            run_id = str(created.info.run_id)
        client.log_batch(
            run_id,
            params=[] if found and found[0].data.params else _params(params),
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
    except UNREACHABLE as error:
        reason = str(error).splitlines()[0]
        logger.warning("MLflow at %s cannot be used: %s", target.tracking_uri, reason)
        return None
    return run_id


def _params(params: dict[str, Any]) -> list[Param]:
    return [Param(name, str(value)) for name, value in params.items()]


def _artifact_location(tracking_uri: str) -> str | None:
    """Keep artifacts beside an SQLite file; a server has its own place for them."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).parent / "mlflow_artifacts").as_uri()


class MetricShipper:
    """Sends records to MLflow from a thread of its own; the step loop never waits for it.

    What MLflow already has, from an earlier attempt at the same steps, is not sent again.
    """

    def __init__(self, target: MlflowTarget, run_id: str, history: Sequence[Record]) -> None:
        self._target, self._run_id = target, run_id
        self._queue: queue.Queue[Record | tuple[str, list[dict[str, Any]]] | None] = queue.Queue()
        self._unsent = 0
        for record in history:
            self.send(record)
        self._thread = threading.Thread(target=self._run, name="mlflow-shipper", daemon=True)
        self._thread.start()

    def send(self, record: Record) -> None:
        """Hand over the metrics of a step."""
        self._unsent += 1
        self._queue.put(record)

    def send_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Hand over a table, shown under ``name`` among the run's artifacts."""
        self._unsent += 1
        self._queue.put((name, rows))

    def close(self, patience_s: float = 30.0) -> int:
        """Send what is left, for so long; return how many items stay unsent."""
        self._queue.put(None)
        self._thread.join(patience_s)
        return self._unsent

    def _run(self) -> None:
        client = self._retry(self._target.client)
        shipped = self._retry(lambda: {k: self._last_step(client, k) for k in _MARKER})
        is_open = True
        while is_open:
            items = [self._queue.get()]
            time.sleep(0.5)  # let a batch gather
            while not self._queue.empty():
                items.append(self._queue.get())
            is_open = None not in items
            tables = [item for item in items if isinstance(item, tuple)]
            records = [item for item in items if isinstance(item, Record)]
            for name, rows in tables:
                self._retry(lambda n=name, r=rows: log_table(client, self._run_id, n, r))
                self._unsent -= 1
            new = [r for r in records if r.step > shipped[r.kind]]
            self._unsent -= len(records) - len(new)
            for first in range(0, len(new), 40):
                metrics = [
                    Metric(name, value, record.timestamp, record.step)
                    for record in new[first : first + 40]
                    for name, value in record.metrics.items()
                ]
                self._retry(lambda m=metrics: client.log_batch(self._run_id, metrics=m))
                self._unsent -= len(new[first : first + 40])

    def _last_step(self, client: mlflow.MlflowClient, kind: str) -> int:
        points = client.get_metric_history(self._run_id, _MARKER[kind])
        return max((point.step for point in points), default=-1)

    def _retry(self, call: Any) -> Any:
        """Call until MLflow answers; waiting longer each time, at most half a minute."""
        delay = 1.0
        while True:
            try:
                return call()
            except UNREACHABLE as error:
                logger.warning("MLflow does not answer, trying again: %s", str(error)[:200])
                time.sleep(delay)
                delay = min(2 * delay, 30.0)


def log_table(
    client: mlflow.MlflowClient, run_id: str, name: str, rows: list[dict[str, Any]]
) -> None:
    """Log rows as a table artifact, once: a second call with the same name does nothing."""
    folder, _, _ = name.rpartition("/")
    if rows and name not in {item.path for item in client.list_artifacts(run_id, folder or None)}:
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        client.log_table(run_id, data=columns, artifact_file=name)


def finish_run(
    target: MlflowTarget,
    run_id: str,
    *,
    history: Sequence[Record],
    config: dict[str, Any],
    refused: list[dict[str, Any]],
    figures: Sequence[Path],
) -> None:
    """Send what MLflow missed, add config, refused rows and figures, and mark it finished."""
    if unsent := MetricShipper(target, run_id, history).close():
        logger.warning(
            "MLflow at %s did not take %d of %d records; history.jsonl in the run's folder has all",
            target.tracking_uri,
            unsent,
            len(history),
        )
        return
    try:
        client = target.client()
        client.log_dict(run_id, config, "config.yaml")
        log_table(client, run_id, "refused_rows.json", refused)
        for figure in figures:
            client.log_artifact(run_id, str(figure), "plots")
        client.set_terminated(run_id, "FINISHED")
    except UNREACHABLE as error:
        logger.warning("MLflow did not take the run's files: %s", str(error)[:200])


def fail_run(target: MlflowTarget, run_id: str) -> None:
    """Mark a run as failed."""
    try:
        target.client().set_terminated(run_id, "FAILED")
    except UNREACHABLE as error:
        logger.warning("MLflow does not know that the run failed: %s", str(error)[:200])
