"""The MLflow run: opened once, found again after a resume."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, RunTag

from rm_ray.errors import InputError
from rm_ray.runs.history import Record, RecordKind
from rm_ray.tracking.target import MlflowAwayError, MlflowTarget, RunDescription

RUN_TAG = "rm_ray.run"
"""Tag that tells a run of ours, by the key that it was given at its beginning."""

_MARKERS: dict[RecordKind, str] = {"train": "episode", "eval": "eval/rm/loss"}
"""A metric that every record of a kind has, to ask MLflow what it has got."""


@dataclass(frozen=True, kw_only=True)
class MlflowRun:
    """One run in MLflow. Every method raises MlflowAwayError where MLflow does not answer."""

    client: mlflow.MlflowClient
    run_id: str

    @classmethod
    def open(cls, target: MlflowTarget, description: RunDescription) -> MlflowRun:
        """Find the run with this key, or create it.

        Raises:
            InputError: its experiment is deleted.
        """
        with naming_the_server(target.tracking_uri):
            client = open_client(target.tracking_uri)
            experiment_id = _experiment(client, target)
            found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{description.key}'")
            if found:
                run = found[0]
                client.update_run(run.info.run_id, status="RUNNING")
            else:
                tags = {RUN_TAG: description.key}
                run = client.create_run(experiment_id, run_name=description.name, tags=tags)
            client.log_batch(
                run.info.run_id,
                params=[] if run.data.params else _params(description.params),
                tags=[RunTag(key, value) for key, value in description.tags.items()],
            )
            return cls(client=client, run_id=str(run.info.run_id))

    def logged_steps(self) -> dict[RecordKind, set[int]]:
        """Return the steps of each kind that MLflow has."""
        with naming_the_server(self.client.tracking_uri):
            points = {
                kind: self.client.get_metric_history(self.run_id, name)
                for kind, name in _MARKERS.items()
            }
        return {kind: {point.step for point in found} for kind, found in points.items()}

    def log(self, records: Sequence[Record]) -> None:
        """Log the metrics of some records."""
        metrics = [
            Metric(name, value, record.timestamp, record.step)
            for record in records
            for name, value in record.metrics.items()
        ]
        with naming_the_server(self.client.tracking_uri):
            self.client.log_batch(self.run_id, metrics=metrics)

    def log_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows as a table artifact, once: a second call with the same name does nothing."""
        folder, _, _ = name.rpartition("/")
        with naming_the_server(self.client.tracking_uri):
            logged = {a.path for a in self.client.list_artifacts(self.run_id, folder or None)}
            if rows and name not in logged:
                columns = {key: [row[key] for row in rows] for key in rows[0]}
                self.client.log_table(self.run_id, data=columns, artifact_file=name)

    def finish(self, documents: dict[str, dict[str, Any]], figures: Sequence[Path]) -> None:
        """Add documents (.yaml, .json) and figures, and mark the run finished."""
        with naming_the_server(self.client.tracking_uri):
            for name, document in documents.items():
                self.client.log_dict(self.run_id, document, name)
            for figure in figures:
                self.client.log_artifact(self.run_id, str(figure), "plots")
            self.client.set_terminated(self.run_id, "FINISHED")

    def end(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Mark the run as failed, or as stopped by a signal; opened again, it is running again."""
        with naming_the_server(self.client.tracking_uri):
            self.client.set_terminated(self.run_id, status)


def ask_mlflow(target: MlflowTarget, *, registry: bool = False) -> str:
    """Return what MLflow says of the experiment, and with ``registry`` ask its registry too.

    Raises:
        InputError: the experiment is deleted.
        MlflowAwayError: it does not answer.
    """
    with naming_the_server(target.tracking_uri):
        client = open_client(target.tracking_uri)
        experiment = _find_experiment(client, target)
        if registry:
            client.search_registered_models(max_results=1)
    known = "is there" if experiment is not None else "will be made"
    return f"experiment '{target.experiment}' {known}"


def open_client(tracking_uri: str) -> mlflow.MlflowClient:
    """Return a client that gives up in seconds instead of minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow.MlflowClient(tracking_uri)


def _experiment(client: mlflow.MlflowClient, target: MlflowTarget) -> str:
    experiment = _find_experiment(client, target)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = _artifact_location(target.sqlite_file)
    return str(client.create_experiment(target.experiment, artifact_location=location))


def _find_experiment(client: mlflow.MlflowClient, target: MlflowTarget) -> Experiment | None:
    """Return the experiment; None where there is none yet.

    Raises:
        InputError: it is deleted, and MLflow neither adds runs to it nor makes another.
    """
    experiment = client.get_experiment_by_name(target.experiment)
    if experiment is not None and experiment.lifecycle_stage == LifecycleStage.DELETED:
        command = ("mlflow", "experiments", "restore", "--experiment-id", experiment.experiment_id)
        raise InputError(
            f"mlflow.experiment '{target.experiment}' is deleted in MLflow at "
            f"{target.tracking_uri}, which takes no runs for it; restore it "
            f"(MLFLOW_TRACKING_URI={shlex.quote(target.tracking_uri)} {shlex.join(command)}), or "
            "name another"
        )
    return experiment


def _artifact_location(file: Path | None) -> str | None:
    """Keep artifacts beside an SQLite file; a server has its own place for them."""
    return None if file is None else (file.parent / "mlflow_artifacts").as_uri()


def _params(params: dict[str, Any]) -> list[Param]:
    return [Param(name, str(value)) for name, value in params.items()]


@contextmanager
def naming_the_server(tracking_uri: str) -> Iterator[None]:
    """Raise MlflowAwayError for whatever MLflow raises."""
    try:
        yield
    except InputError:
        raise
    # Stores of files and databases raise what they please, some without any package in common.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise MlflowAwayError(f"MLflow at {tracking_uri} does not answer: {reason}") from error
