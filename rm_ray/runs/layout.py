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

ADAPTER = "adapter"
"""The export for peft, if ``lora.export`` asks for one."""

AUDIT = "audit.json"
"""What an audit of the training rows found: one that named the run as a model, or one before it."""

HISTORY = "history.jsonl"
"""Every metric so far: in each checkpoint, and in the folder of a finished run."""

REFERENCE_REWARDS = "probes.json"
"""Rewards of the reference pairs that clients are checked against: in each checkpoint, and next to
the export."""

STATE, LEDGER = "state.json", "data/trained_pairs.npz"
"""Training state and counts of trained pairs, in each checkpoint."""

LOSSES, PAIR_LOSSES = "data/pair_losses.npy", "pair_losses"
"""With ``run.keep_pair_losses``: each pair's losses, in each checkpoint; and those of each row, in
the folder of a finished run."""


FORMAT = 2
"""Version of a run's files; 1, which the record did not state, planned pairs instead of groups."""


def refuse_other_format(record: dict[str, Any], where: str, *, is_finished: bool = False) -> None:
    """Refuse to continue a run, or to read its checkpoints, if its files have another format.

    Raises:
        InputError: names the commit that began the run.
    """
    found = record.get("format", 1)
    if found != FORMAT:
        commit = (record.get("versions") or {}).get("version.rm_ray", "an unknown commit")
        remedy = (
            f"Publish it with the version that trained it ({commit}); its export can be used as "
            "it is"
            if is_finished
            else f"Continue it with the version that began it ({commit}), or train again under "
            "another --run.name"
        )
        raise InputError(
            f"{where} holds a run whose checkpoints have format {found!r}, and this version of "
            f"rm_ray reads format {FORMAT}. {remedy}"
        )


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
