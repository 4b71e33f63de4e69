"""Names of checkpoint folders: step, and number of the attempt that wrote it."""

from __future__ import annotations

import re

from rm_ray.storage import Storage

_CHECKPOINT = re.compile(r"checkpoint_\d{8,}_\d{4,}")


def checkpoint_name(step: int, attempt: int) -> str:
    """Return a folder name that no other attempt at the run writes to."""
    return f"checkpoint_{step:08d}_{attempt:04d}"


def step_of(name: str) -> int:
    """Return the step in a checkpoint's name; 0 for any other folder."""
    step = name.removeprefix("checkpoint_").partition("_")[0]
    return int(step) if step.isdigit() else 0


def attempt_of(name: str) -> int:
    """Return the attempt number in a checkpoint's name; 0 for any other folder."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


def list_checkpoints(run_folder: Storage) -> list[str]:
    """Return the names of all checkpoint folders, intact or not, newest first.

    Other folders, such as copies that a user made, are ignored.
    """
    names = (entry.name for entry in run_folder.list() if entry.is_folder)
    return sorted((name for name in names if _CHECKPOINT.fullmatch(name)), reverse=True)
