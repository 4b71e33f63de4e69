"""A sweep's record, ``sweep.json``, and the marks of trials that ended without a result.

Ray Tune's own restore is not used: it needs the objects of the process that was killed, and repeats
a trial from its last checkpoint in Tune's format. Here every fact is in the folders of the runs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from rm_ray.config.sweep import SweepConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.runs.layout import RUN
from rm_ray.runs.record import find_differing
from rm_ray.storage import Storage
from rm_ray.sweep.trials import Trial

SWEEP, TRIALS = "sweep.json", "trials"
"""The record, and the folder of the trials' recipes, logs and marks."""

Ending = Literal["stopped early", "failed", "interrupted"]
"""How a trial ended that did not finish."""


def open_sweep(
    folder: Storage, config: TrainConfig, sweep: SweepConfig, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Return the record of a sweep; that of a new one is to be written once the sweep begins.

    Raises:
        InputError: the folder holds a run, or a sweep that began with other settings.
    """
    record = folder.read_json(SWEEP)
    if record is None:
        if folder.exists(RUN):
            raise InputError(
                f"run.name is '{config.run.name}', and {folder.path} holds a run of that name; "
                "give the sweep another --run.name"
            )
        record = {
            "key": uuid.uuid4().hex,
            "sweep": sweep.to_json(),
            "config": config.to_json(),
            "trials": [trial.to_json() for trial in trials],
        }
        record = json.loads(json.dumps(record))  # what the next command will read
    differing = find_differing(record["config"], config)
    names = [trial.to_json() for trial in trials]
    if record["trials"] != names:
        now = {trial["name"]: trial for trial in names}
        before = {trial["name"]: trial for trial in record["trials"]}
        other = sorted(name for name in now.keys() | before.keys()
                       if now.get(name) != before.get(name))  # fmt: skip
        differing.append(f"its trials ({len(other)} differ, such as {other[0]})")
    for name in ("metric", "asha"):
        before, now = record["sweep"][name], sweep.to_json()[name]
        if before != now:
            differing.append(f"{name} was {before!r} and is {now!r}")
    if differing:
        raise InputError(
            f"the sweep in {folder.path} began with other settings: {'; '.join(differing)}. Resume "
            "it with the same ones, or choose another --run.name"
        )
    return dict(record)


def mark(folder: Storage, trial: str, ending: Ending, cause: str) -> None:
    """Write down that a trial ended without a result, and why."""
    folder.write_json(_mark_name(trial), {"ending": ending, "cause": cause})


def read_mark(folder: Storage, trial: str) -> dict[str, str] | None:
    """Return a trial's mark; None if it has none."""
    found: dict[str, str] | None = folder.read_json(_mark_name(trial))
    return found


def forget_failures(folder: Storage, trials: Sequence[Trial]) -> None:
    """Delete the marks of trials that are to be tried again: all but those stopped early."""
    for trial in trials:
        found = read_mark(folder, trial.name)
        if found is not None and found["ending"] != "stopped early":
            folder.delete_file(_mark_name(trial.name))


def _mark_name(trial: str) -> str:
    return f"{TRIALS}/{trial}.json"
