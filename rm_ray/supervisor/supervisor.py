"""Runs attempt after attempt in fresh processes, until the run is finished or cannot be.

It knows neither Ray nor torch: what kills those does not reach it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.orphans import adopting, end_orphans
from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.importing import share_package
from rm_ray.runs.attempts import (
    LOST_COMMAND,
    Attempt,
    attempt_of,
    list_checkpoints,
    read_attempts,
    write_attempts,
)
from rm_ray.runs.record import open_run
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage
from rm_ray.supervisor.signals import INTERRUPTED, TERMINATED, Signals

logger = logging.getLogger(__name__)

DEATHS_WITHOUT_PROGRESS = 8
"""Attempts in a row that may be lost to the death of a process without getting further."""

QUIET_FOR_S = 120.0
"""An attempt that trains, and then says nothing for so long, has lost its Ray and is ended."""

LONGEST_DELAY_S = 30.0

OUTAGE_DELAY_S = 5.0
"""Between attempts that something outside of the run keeps from beginning."""

WRITE_EVERY_S = 5.0

LONG_AGO_S = 600.0
"""A command last heard of before that is not waited for, also where clocks differ somewhat."""


def supervise(config: TrainConfig, startup: Startup) -> dict[str, Any]:
    """Train to the end, over as many attempts as that takes; return the run's ``result.json``.

    Raises:
        InputError: something given cannot be trained on.
        TrainingError: training cannot go on.
        StoppedError: a signal asked to stop, and a checkpoint was taken.
    """
    share_package()
    run_folder, result = open_run(config)
    if result is not None:
        return result
    _refuse_company(run_folder)
    run_folder.delete_drafts()
    attempts = read_attempts(run_folder)
    first = len(attempts)
    began, command = startup.began, uuid.uuid4().hex
    with adopting(), Signals() as signals:
        while True:
            number = _next_number(run_folder, attempts)
            attempts.append(Attempt(number=number, command=command, began=began, updated=began))
            result = _attempt(config, run_folder, attempts, signals)
            latest = attempts[-1]
            if result is not None:
                return result
            delay = decide(attempts[first:], patience_s=config.checkpoint.storage_patience_s)
            logger.warning(
                "attempt %d ended at step %d: %s; %s",
                latest.number,
                latest.step,
                (latest.cause.strip() or "for no known cause").splitlines()[0],
                "going on" if delay == 0 else f"trying again in {delay:.0f} s",
            )
            signals.sleep(delay, step=latest.step)
            began = time.time()


def _next_number(run_folder: Storage, attempts: Sequence[Attempt]) -> int:
    """Return a number that no attempt had, also one of which only its checkpoints are known."""
    try:
        marked = [attempt_of(name) for name in list_checkpoints(run_folder)]
    except OSError:
        marked = []  # the storage fails for a while, and with it the attempt, if it goes on
    return 1 + max([*marked, *(attempt.number for attempt in attempts)], default=0)


def _refuse_company(run_folder: Storage) -> None:
    """See that no other command is at work on the run.

    Raises:
        InputError: one is.
    """

    def heard_of() -> float | None:
        """Return when the other command last wrote, if it left an attempt under way."""
        latest = read_attempts(run_folder)[-1:]
        return latest[0].updated if latest and latest[0].cause == LOST_COMMAND else None

    before = heard_of()
    if before is None or abs(time.time() - before) > LONG_AGO_S:
        return
    logger.info("a command was at work on this run a moment ago; seeing whether it still is")
    time.sleep(3 * WRITE_EVERY_S)
    if heard_of() not in (None, before):
        raise _CompanyError(run_folder)


class _CompanyError(InputError):
    """Another command is at work on the run."""

    def __init__(self, run_folder: Storage) -> None:
        super().__init__(
            f"another command is at work on the run in {run_folder.path}; wait for it, stop it, "
            f"or give "
            "this one another --run.name"
        )


def decide(attempts: Sequence[Attempt], *, patience_s: float) -> float:
    """Return the seconds to wait before the next attempt.

    For ``patience_s`` whatever is outside of the run may be out of order: once it has trained, also
    what looks like wrong input.

    Raises:
        InputError: the latest attempt was refused.
        TrainingError: it failed for good, or as the one before it did, or none gets further.
        StoppedError: it was asked to stop.
    """
    latest = attempts[-1]
    out_since = _out_since(attempts)
    if out_since is not None and latest.updated - out_since < patience_s:
        return OUTAGE_DELAY_S
    if latest.ending == "refused":
        raise InputError(latest.cause)
    if latest.ending == "failed":
        raise TrainingError(latest.cause)
    if latest.ending == "stopped":
        if latest.cause in (INTERRUPTED, TERMINATED):
            raise StoppedError(latest.cause, latest.step, latest.saved_step)
        return 0.0
    if latest.skips is not None:
        return 0.0
    lost = _lost_without_progress(attempts)
    if latest.signature and any(
        earlier.signature == latest.signature for earlier in lost[1:] + _lost_at_its_step(attempts)
    ):
        raise TrainingError(
            f"the same error came twice at step {latest.step}, so it is no accident:\n"
            f"{latest.cause.rstrip()}\nThe checkpoints before it are kept"
        )
    if len(lost) >= DEATHS_WITHOUT_PROGRESS:
        raise TrainingError(
            f"{len(lost)} attempts in a row were lost at step {latest.step}, the last one because "
            f"{latest.cause.rstrip()}. The checkpoints are kept; the same command tries again"
        )
    return 0.0 if len(lost) == 1 else min(2.0 ** (len(lost) - 1), LONGEST_DELAY_S)


def _out_since(attempts: Sequence[Attempt]) -> float | None:
    """Return when the outage began that ended the latest attempts; None where it was not one."""
    since = None
    for i in reversed(range(len(attempts))):
        attempt = attempts[i]
        has_trained = any(earlier.first_step is not None for earlier in attempts[: i + 1])
        if not (attempt.is_outage or (attempt.ending == "refused" and has_trained)):
            break
        since = attempt.began if attempt.first_step is None else attempt.updated
    return since


def _lost_without_progress(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the lost attempts since the run got further than ever, the latest first.

    An attempt's step is a reading a second or two old, so errors of one step differ a little in it.
    """
    lost: list[Attempt] = []
    for i in reversed(range(len(attempts))):
        if attempts[i].ending != "lost":
            break
        lost.append(attempts[i])
        begun = [earlier.first_step or 0 for earlier in attempts[:i]]
        if (attempts[i].first_step or 0) > max(begun, default=0):
            break
    return lost


def _lost_at_its_step(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the attempts, lost one after another up to the latest, that ended where that did.

    The later one may have begun at a newer checkpoint all the same.
    """
    latest, found = attempts[-1], []
    for earlier in reversed(attempts[:-1]):
        if earlier.ending != "lost":
            break
        if earlier.step == latest.step:
            found.append(earlier)
    return found


def _attempt(
    config: TrainConfig, run_folder: Storage, attempts: list[Attempt], signals: Signals
) -> dict[str, Any] | None:
    """Run the last of the attempts to its end; return its result if it has one."""
    attempt = attempts[-1]
    _write(run_folder, attempts, claims=all(a.command != attempt.command for a in attempts[:-1]))
    reading, writing = os.pipe()
    others = psutil.Process().children()
    process = subprocess.Popen(
        [sys.executable, "-m", "rm_ray.driver.attempt", str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        start_new_session=True,  # a signal from the terminal reaches only the supervisor
        text=True,
    )
    os.close(writing)
    task = {
        "config": config.to_json(),
        "number": attempt.number,
        "began": attempt.began,
        "earlier": [asdict(earlier) for earlier in attempts[:-1]],
    }
    signals.watch_over(process, json.dumps(task))
    told: dict[str, Any] = {}
    written = 0.0
    try:
        for changed in _told(process, reading):
            told |= changed
            attempt.updated = time.time()
            for name in changed.keys() - {"result", "lives"}:
                setattr(attempt, name, changed[name])
            if attempt.updated - written > WRITE_EVERY_S:
                _write(run_folder, attempts)
                written = attempt.updated
    except _CompanyError:
        process.kill()
        process.communicate()
        raise
    finally:
        signals.process = None
        end_orphans(others)
    if attempt.ending == "running":
        attempt.ending = "lost"
        attempt.cause = f"its driver ended with {_describe_exit(process.returncode)}"
    attempt.updated = time.time()
    _write(run_folder, attempts)
    return told.get("result")


def _told(process: subprocess.Popen[str], reading: int) -> Iterator[dict[str, Any]]:
    """Yield what an attempt tells, until it ends or hangs; now and then nothing."""
    has_trained, heard, heartbeats, unread = False, time.monotonic(), time.monotonic(), b""
    while True:
        ready, _, _ = select.select([reading], [], [], WRITE_EVERY_S)
        if ready:
            block = os.read(reading, 2**16)
            if not block:
                break
            heard = time.monotonic()
            *lines, unread = (unread + block).split(b"\n")
            for line in lines:
                changed = json.loads(line)
                if "lives" not in changed:
                    has_trained = "step" in changed and "ending" not in changed
                    heartbeats = heard
                yield changed
        now = time.monotonic()
        if now - heard > QUIET_FOR_S or (has_trained and now - heartbeats > QUIET_FOR_S):
            logger.warning("the attempt has said nothing for %.0f s and is ended", QUIET_FOR_S)
            process.kill()
        if not ready:
            yield {}
    os.close(reading)
    process.communicate()


def _write(run_folder: Storage, attempts: Sequence[Attempt], *, claims: bool = False) -> None:
    """Keep what is known of the attempts, if the storage lets us.

    Raises:
        InputError: another command, begun at the same moment, has claimed the run after this one.
    """
    try:
        latest = [] if claims else read_attempts(run_folder)[-1:]
        if latest and latest[0].command != attempts[-1].command:
            raise _CompanyError(run_folder)
        write_attempts(run_folder, attempts)
    except OSError as error:
        logger.warning("attempts.json cannot be written now: %s", error)


def _describe_exit(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
