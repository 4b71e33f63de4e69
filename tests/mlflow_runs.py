"""Runs in a real MLflow: an SQLite file, whose tables are made once and copied."""

import functools
import shutil
import tempfile
from pathlib import Path

import mlflow

from rm_ray.runs.history import Record
from rm_ray.tracking.mlflow_run import MlflowRun
from rm_ray.tracking.target import MlflowTarget, RunDescription

PATIENCE_S = 120.0
"""How long MLflow may take on a busy machine."""


def make_target(folder: Path) -> MlflowTarget:
    """Return a database without any experiment of ours."""
    shutil.copy(_empty_database(), folder / "mlflow.db")
    return MlflowTarget(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment="tests")


@functools.cache
def _empty_database() -> Path:
    file = Path(tempfile.mkdtemp(prefix="rm_ray-mlflow-")) / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def begin(target: MlflowTarget, key: str = "k") -> MlflowRun:
    """Open the run with a key."""
    description = RunDescription(name="a run", key=key, params={"a": 1, "b": None}, tags={"t": "x"})
    return MlflowRun.open(target, description)


def make_records(first: int, last: int, *, later: int = 0) -> list[Record]:
    """Return metrics of steps, ``later`` milliseconds after those of another call."""
    return [
        Record(step=s, kind="train", episode=s, hours=0.0, timestamp=1_000 + s + later,
               metrics={"episode": float(s), "train/rm/loss": 1 / s})
        for s in range(first, last + 1)
    ]  # fmt: skip


def logged_losses(target: MlflowTarget) -> list[int]:
    """Return the step of each training loss that MLflow has."""
    run = begin(target)
    return [p.step for p in run.client.get_metric_history(run.run_id, "train/rm/loss")]
