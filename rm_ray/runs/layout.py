"""What the files of a run's folder and of its checkpoints are called, and the first of them."""

from __future__ import annotations

from typing import Any

from rm_ray.errors import InputError
from rm_ray.storage import Storage

RUN, RESULT = "run.json", "result.json"
"""What the run began with, and what came of it."""

SKELETON = "skeleton"
"""The exported model's configuration and tokenizer, from the run's beginning on."""

EXPORT, PLOTS, SAMPLES, EVALUATIONS = "export", "plots", "samples", "evaluations"

HISTORY = "history.jsonl"
"""Every metric so far, in a checkpoint and, once it is finished, in the run's folder."""

PROBES = "probes.json"
"""Rewards that clients are compared with, in a checkpoint and beside the exported model."""

STATE, LEDGER = "state.json", "data/trained_pairs.npz"
"""In a checkpoint."""


def read_record(run_folder: Storage) -> dict[str, Any]:
    """Return a run's ``run.json``.

    Raises:
        InputError: there is none, or it is not what a run writes.
    """
    record = run_folder.read_json(RUN)
    if record is None:
        raise InputError(f"'{run_folder.path}' holds no run: there is no {RUN} in it")
    config = record.get("config") if isinstance(record, dict) else None
    if not isinstance(config, dict) or not {"run", "mlflow", "hub"} <= config.keys():
        raise InputError(f"{run_folder.join(RUN)} is not what a run writes: it has no settings")
    return dict(record)
