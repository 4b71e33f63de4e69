"""Samples of the evaluations: files in the run's folder -> tables for MLflow."""

from __future__ import annotations

from collections.abc import Iterator

from rm_ray.runs.layout import SAMPLES
from rm_ray.storage import Storage
from rm_ray.tracking.sender import Table

EVAL_SAMPLES = "eval_samples"
"""Artifact folder of the tables in MLflow."""


def read_samples(run_folder: Storage) -> Iterator[Table]:
    """Yield the samples of every evaluation so far, as tables for MLflow."""
    yield from _read(run_folder, "")
    for entry in run_folder.list(SAMPLES):
        if entry.is_folder:  # of a named set
            yield from _read(run_folder, f"/{entry.name}")


def _read(run_folder: Storage, below: str) -> Iterator[Table]:
    for entry in run_folder.list(f"{SAMPLES}{below}"):
        if entry.name.endswith(".json"):  # skip drafts left behind by a kill
            name = f"{below}/{entry.name}"
            yield f"{EVAL_SAMPLES}{name}", run_folder.read_json(f"{SAMPLES}{name}")
