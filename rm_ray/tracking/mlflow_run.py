"""A run in MLflow, found again by its key after a resume."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, RunTag

from rm_ray.errors import InputError, MlflowAwayError
from rm_ray.runs.history import Record, RecordKind
from rm_ray.tracking.target import METRICS_PER_CALL, MlflowTarget, RunDescription

RUN_TAG = "rm_ray.run"
"""Tag with the run's key, which identifies our run in MLflow."""


@dataclass(frozen=True, kw_only=True)
class MlflowRun:
    """One run in MLflow. Every method raises MlflowAwayError if MLflow does not answer."""

    client: mlflow.MlflowClient
    run_id: str

    @classmethod
    def open(cls, target: MlflowTarget, description: RunDescription) -> MlflowRun:
        """Find the run with the description's key, or create it.

        Raises:
            InputError: the experiment is deleted.
        """
        with translate_errors(target.tracking_uri):
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
        """Return the steps that MLflow has, by record kind."""
        with translate_errors(self.client.tracking_uri):
            run = self.client.get_run(self.run_id)
            return {
                kind: {
                    point.step
                    for name in names
                    for point in self.client.get_metric_history(self.run_id, name)
                }
                for kind, names in _markers(run.data.metrics).items()
            }

    def log(self, records: Sequence[Record]) -> None:
        """Log the metrics of records."""
        metrics = [
            Metric(name, value, record.timestamp, record.step)
            for record in records
            for name, value in record.metrics.items()
        ]
        with translate_errors(self.client.tracking_uri):
            # A record counts as logged by its first metrics, so these go last.
            for first in reversed(range(0, len(metrics), METRICS_PER_CALL)):
                batch = metrics[first : first + METRICS_PER_CALL]
                self.client.log_batch(self.run_id, metrics=batch)

    def log_table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows as a table artifact; a second call with the same name does nothing."""
        folder, _, _ = name.rpartition("/")
        with translate_errors(self.client.tracking_uri):
            logged = {a.path for a in self.client.list_artifacts(self.run_id, folder or None)}
            if rows and name not in logged:
                columns = {key: [row[key] for row in rows] for key in rows[0]}
                self.client.log_table(self.run_id, data=columns, artifact_file=name)

    def finish(self, documents: dict[str, dict[str, Any]], figures: Sequence[Path]) -> None:
        """Log documents (.yaml, .json) and figures, and mark the run finished."""
        with translate_errors(self.client.tracking_uri):
            for name, document in documents.items():
                self.client.log_dict(self.run_id, document, name)
            for figure in figures:
                self.client.log_artifact(self.run_id, str(figure), "plots")
            self.client.set_terminated(self.run_id, "FINISHED")

    def end(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Mark the run as failed or stopped by a signal, until it is opened again."""
        with translate_errors(self.client.tracking_uri):
            self.client.set_terminated(self.run_id, status)


def _markers(metrics: Iterable[str]) -> dict[RecordKind, list[str]]:
    """Return the metrics whose history shows which records MLflow has.

    Every record of a step has its episode. A record of an evaluation has all metrics of the sets
    that it was made on, so one metric of each set is enough.
    """
    one_of_each: dict[str, str] = {}
    for name in sorted(metrics):
        if name.startswith("eval/"):
            one_of_each.setdefault(name.split("/")[1], name)
    return {"train": ["episode"], "eval": [*one_of_each.values()]}


def ask_mlflow(target: MlflowTarget, *, registry: bool = False) -> str:
    """Return whether the experiment exists, as a sentence; ``registry`` also queries the registry.

    Raises:
        InputError: the experiment is deleted.
        MlflowAwayError: MLflow does not answer.
    """
    with translate_errors(target.tracking_uri):
        client = open_client(target.tracking_uri)
        experiment = _find_experiment(client, target)
        if registry:
            client.search_registered_models(max_results=1)
    state = "exists" if experiment is not None else "will be created"
    return f"experiment '{target.experiment}' {state}"


def open_client(tracking_uri: str) -> mlflow.MlflowClient:
    """Return a client that gives up after seconds instead of minutes."""
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
    """Return the experiment; None if it does not exist yet.

    Raises:
        InputError: it is deleted; MLflow then neither adds runs to it nor creates another.
    """
    experiment = client.get_experiment_by_name(target.experiment)
    if experiment is not None and experiment.lifecycle_stage == LifecycleStage.DELETED:
        command = ("mlflow", "experiments", "restore", "--experiment-id", experiment.experiment_id)
        raise InputError(
            f"mlflow.experiment '{target.experiment}' is deleted in MLflow at "
            f"{target.tracking_uri}, so it accepts no runs; restore it "
            f"(MLFLOW_TRACKING_URI={shlex.quote(target.tracking_uri)} {shlex.join(command)}), or "
            "choose another"
        )
    return experiment


def _artifact_location(file: Path | None) -> str | None:
    """Return a folder next to an SQLite file; None for a server, which has its own location."""
    return None if file is None else (file.parent / "mlflow_artifacts").as_uri()


def _params(params: dict[str, Any]) -> list[Param]:
    return [Param(name, str(value)) for name, value in params.items()]


@contextmanager
def translate_errors(tracking_uri: str) -> Iterator[None]:
    """Turn any exception from MLflow, except InputError, into MlflowAwayError."""
    try:
        yield
    except InputError:
        raise
    # File and database stores raise exceptions with no common base class.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise MlflowAwayError(f"MLflow at {tracking_uri} does not answer: {reason}") from error
