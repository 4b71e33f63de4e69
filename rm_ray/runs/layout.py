"""File names in a run's folder and its checkpoints, and the reader of ``run.json``."""

from __future__ import annotations

from typing import Any

from rm_ray.errors import InputError
from rm_ray.storage import Storage

RUN, RESULT = "run.json", "result.json"
"""The run's settings and data, and its result."""

SKELETON = "skeleton"
"""The exported model's configuration and tokenizer, written when the run starts."""

EXPORT, PLOTS, SAMPLES, EVALUATIONS = "export", "plots", "samples", "evaluations"

HISTORY = "history.jsonl"
"""Every metric so far: in each checkpoint, and in the folder of a finished run."""

REFERENCE_REWARDS = "probes.json"
"""Rewards of the reference pairs that clients are checked against: in each checkpoint, and next to
the export."""

STATE, LEDGER = "state.json", "data/trained_pairs.npz"
"""Training state and counts of trained pairs, in each checkpoint."""


def read_record(run_folder: Storage) -> dict[str, Any]:
    """Return a run's ``run.json``.

    Raises:
        InputError: it is missing, or no run wrote it.
    """
    record = run_folder.read_json(RUN)
    if record is None:
        raise InputError(f"'{run_folder.path}' holds no run: {RUN} is missing")
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict) or not {"run", "mlflow", "hub"} <= config.keys():
        raise InputError(f"{run_folder.join(RUN)} is not the record of a run: it has no settings")
    return dict(record)
