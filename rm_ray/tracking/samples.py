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
    for entry in run_folder.list(SAMPLES):
        if entry.name.endswith(".json"):  # skip drafts left behind by a kill
            yield f"{EVAL_SAMPLES}/{entry.name}", run_folder.read_json(f"{SAMPLES}/{entry.name}")
