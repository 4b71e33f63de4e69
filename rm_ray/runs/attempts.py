"""Attempts at a run: how each started and ended, and where the run's time went."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts.json"

LOST_COMMAND = "the command was killed, or its machine lost"
"""Cause of an attempt whose end was not recorded."""

Ending = Literal["running", "finished", "stopped", "lost", "refused", "failed"]


@dataclass(kw_only=True)
class Attempt:
    """One process group's attempt at a run, from start to exit."""

    number: int
    began: float
    """Start in Unix seconds, like every time here."""
    updated: float
    """Last update; the end of an attempt that has ended."""
    command: str = ""
    """Id of the command that started the attempt."""
    ending: Ending = "running"
    cause: str = ""
    """Why the attempt ended."""
    signature: str = ""
    """Identifies an error in code or data; empty if a process was lost."""
    is_outage: bool = False
    """Whether the attempt was lost because a storage, a network or Ray did not answer."""
    skips: int | None = None
    """Step (counted from 0) whose loss was not finite; later attempts skip it."""
    num_workers: int = 0
    first_step: int | None = None
    """Steps completed when training started; None if it never did."""
    step: int = 0
    """Steps completed at the end."""
    saved_step: int | None = None
    """Step of the newest checkpoint if the attempt stopped after saving one."""
    startup: dict[str, float] = field(default_factory=dict)
    """Seconds until the first step, by phase."""
    mlflow_unsent: int = 0
    """Records and tables that MLflow has not accepted."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds since the first step, by activity."""

    @property
    def seconds(self) -> float:
        """Duration so far."""
        return max(self.updated - self.began, 0.0)  # a clock may be set back


def read_attempts(run_folder: Storage) -> list[Attempt]:
    """Return the attempts so far; an attempt still marked as running counts as lost."""
    try:
        attempts = [Attempt(**entry) for entry in run_folder.read_json(ATTEMPTS) or []]
    except (ValueError, TypeError) as error:
        logger.warning("%s is unreadable, starting a new one: %s", run_folder.join(ATTEMPTS), error)
        return []
    for attempt in attempts:
        if attempt.ending == "running":
            attempt.ending, attempt.cause = "lost", LOST_COMMAND
    return attempts


def write_attempts(run_folder: Storage, attempts: Sequence[Attempt]) -> None:
    """Write all attempts atomically."""
    run_folder.write_json(ATTEMPTS, [asdict(attempt) for attempt in attempts])


def account(attempts: Sequence[Attempt], kept: dict[str, float]) -> dict[str, float]:
    """Return where a run's seconds went: ``kept`` work, start-up, redone work, the rest.

    ``goodput`` is the share of the total spent on steps that count.
    """
    total = sum(attempt.seconds for attempt in attempts)
    spent = sum(sum(attempt.spent.values()) for attempt in attempts)
    redone = max(spent - sum(kept.values()), 0.0)
    startup = sum(
        # An attempt lost before its first step spent all its time starting up.
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
