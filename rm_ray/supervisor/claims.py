"""A command's claim on a run: only one command at a time writes its attempts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from rm_ray.errors import InputError
from rm_ray.runs.attempts import LOST_COMMAND, Attempt, read_attempts, write_attempts
from rm_ray.runs.checkpoint_names import attempt_of, list_checkpoints
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0
"""Interval between two writes of ``attempts.json`` during an attempt."""

LONG_AGO_S = 600.0
"""A command silent for longer than this counts as gone; large enough for clocks that differ."""


class CompanyError(InputError):
    """Another command is working on the run."""

    def __init__(self, run_folder: Storage) -> None:
        super().__init__(
            f"another command is at work on the run in {run_folder.path}; wait for it, stop it, or "
            "give this one another --run.name"
        )


def next_number(run_folder: Storage, attempts: Sequence[Attempt]) -> int:
    """Return an unused attempt number; attempts known only by their checkpoints count as used."""
    try:
        marked = [attempt_of(name) for name in list_checkpoints(run_folder)]
    except OSError:
        marked = []  # a storage outage; if it lasts, the attempt fails too
    return 1 + max([*marked, *(attempt.number for attempt in attempts)], default=0)


def refuse_company(run_folder: Storage) -> None:
    """Check that no other command is working on the run; waits if one was active recently.

    Raises:
        CompanyError: another command is working on it.
    """
    before = _last_heard(run_folder)
    if before is None or abs(time.time() - before) > LONG_AGO_S:
        return
    logger.info("another command was active on this run a moment ago; checking whether it still is")
    time.sleep(3 * WRITE_EVERY_S)
    if _last_heard(run_folder) not in (None, before):
        raise CompanyError(run_folder)


def _last_heard(run_folder: Storage) -> float | None:
    """Return when another command last wrote, if its latest attempt has no ending; else None."""
    latest = read_attempts(run_folder)[-1:]
    return latest[0].updated if latest and latest[0].cause == LOST_COMMAND else None


def keep_attempts(
    run_folder: Storage, attempts: Sequence[Attempt], *, claims: bool = False
) -> None:
    """Write ``attempts.json``; log a warning if the storage fails.

    With ``claims``, take over the run for this command, no matter who wrote last.

    Raises:
        CompanyError: another command, started at the same time, has claimed the run.
    """
    try:
        latest = [] if claims else read_attempts(run_folder)[-1:]
        if latest and latest[0].command != attempts[-1].command:
            raise CompanyError(run_folder)
        write_attempts(run_folder, attempts)
    except OSError as error:
        logger.warning("cannot write attempts.json at the moment: %s", error)
