"""The attempts at a run: how each began and ended, and where the run's time went."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pyarrow import fs as pafs

from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts.json"

LOST_COMMAND = "the command was killed, or its machine lost"
"""Why an attempt ended whose end nobody wrote down."""

_CHECKPOINT = re.compile(r"checkpoint_\d{8,}_\d{4,}")

Ending = Literal["running", "finished", "stopped", "lost", "refused", "failed"]


@dataclass(kw_only=True)
class Attempt:
    """One process group's go at a run, from its command to its end."""

    number: int
    began: float
    """Seconds since 1970, as every time here."""
    updated: float
    command: str = ""
    """What tells the command that made it from every other."""
    ending: Ending = "running"
    cause: str = ""
    """Why it ended."""
    signature: str = ""
    """What tells an error in code or data from another; empty where a process was lost."""
    is_outage: bool = False
    """Whether it was lost because a storage, a network or Ray did not answer."""
    skips: int | None = None
    """A step (counted from 0) whose loss was not finite, and which later attempts leave out."""
    num_workers: int = 0
    first_step: int | None = None
    """Steps that were done when it began to train; none where it did not get there."""
    step: int = 0
    """Steps that it got to."""
    saved_step: int | None = None
    """Step of the newest checkpoint, where it was stopped after one."""
    startup: dict[str, float] = field(default_factory=dict)
    mlflow_unsent: int = 0
    """Records and tables that MLflow has not taken."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds by what they went into, from its first step on."""

    @property
    def seconds(self) -> float:
        """How long it lasted, or has lasted."""
        return max(self.updated - self.began, 0.0)  # clocks may be set back


def read_attempts(run_folder: Storage) -> list[Attempt]:
    """Return the attempts so far; one whose command was lost with it ended when last heard of."""
    try:
        attempts = [Attempt(**entry) for entry in run_folder.read_json(ATTEMPTS) or []]
    except (ValueError, TypeError) as error:
        logger.warning("%s is unreadable, and begun anew: %s", run_folder.join(ATTEMPTS), error)
        return []
    for attempt in attempts:
        if attempt.ending == "running":
            attempt.ending, attempt.cause = "lost", LOST_COMMAND
    return attempts


def write_attempts(run_folder: Storage, attempts: Sequence[Attempt]) -> None:
    """Write all attempts at once."""
    run_folder.write_json(ATTEMPTS, [asdict(attempt) for attempt in attempts])


def checkpoint_name(step: int, attempt: int) -> str:
    """Return a folder's name that no other attempt at the run writes to."""
    return f"checkpoint_{step:08d}_{attempt:04d}"


def step_of(name: str) -> int:
    """Return the step of a checkpoint; 0 for a folder of another name."""
    step = name.removeprefix("checkpoint_").partition("_")[0]
    return int(step) if step.isdigit() else 0


def attempt_of(name: str) -> int:
    """Return the number of the attempt that wrote a checkpoint; 0 for a folder of another name."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdigit() else 0


def list_checkpoints(run_folder: Storage) -> list[str]:
    """Return the names of all checkpoint folders, whole or not, newest first.

    A folder of another name, such as a copy that someone made, is left alone.
    """
    folders = (info for info in run_folder.list() if info.type == pafs.FileType.Directory)
    names = (info.base_name for info in folders)
    return sorted((name for name in names if _CHECKPOINT.fullmatch(name)), reverse=True)


def account(attempts: Sequence[Attempt], kept: dict[str, float]) -> dict[str, float]:
    """Return where the seconds of a run went: ``kept`` work, start-up, work done again, the rest.

    ``goodput`` is the share of the steps that count.
    """
    total = sum(attempt.seconds for attempt in attempts)
    spent = sum(sum(attempt.spent.values()) for attempt in attempts)
    redone = max(spent - sum(kept.values()), 0.0)
    startup = sum(
        # One that was lost before its first step did nothing but start.
        sum(attempt.startup.values()) or max(attempt.seconds - sum(attempt.spent.values()), 0.0)
        for attempt in attempts
    )
    rest = max(total - startup - redone - sum(kept.values()), 0.0)
    return {
        **kept,
        "start-up": startup,
        "work lost and redone": redone,
        "the rest": rest,
        "total": total,
        "goodput": kept.get("steps", 0.0) / total if total else 0.0,
    }


def describe_ending(attempt: Attempt) -> dict[str, Any]:
    """Return an attempt as a row of the timeline."""
    return {
        "attempt": attempt.number,
        "workers": attempt.num_workers,
        "first_step": attempt.first_step,
        "last_step": attempt.step,
        "seconds": round(attempt.seconds, 1),
        "start_up_seconds": round(sum(attempt.startup.values()), 1),
        "ending": attempt.ending,
        "cause": attempt.cause,
    }
