"""The process of one attempt: starting it, reading its reports, and cleaning up after it."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import psutil

from rm_ray.cluster.timeouts import QUIET_FOR_S
from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.orphans import end_orphans
from rm_ray.runs.attempts import Attempt
from rm_ray.storage import Storage
from rm_ray.supervisor.claims import WRITE_EVERY_S, CompanyError, keep_attempts
from rm_ray.supervisor.signals import Signals

logger = logging.getLogger(__name__)


def run_attempt(
    config: TrainConfig, run_folder: Storage, attempts: list[Attempt], signals: Signals
) -> dict[str, Any] | None:
    """Run the last attempt of the list to its end; return its result, if any.

    Its reports update that attempt and ``attempts.json`` in the run's folder.

    Raises:
        CompanyError: another command has claimed the run.
    """
    attempt = attempts[-1]
    is_first = all(a.command != attempt.command for a in attempts[:-1])
    keep_attempts(run_folder, attempts, claims=is_first)
    others = psutil.Process().children()
    process, reading = _start()
    signals.watch_over(process, _task(config, attempts))
    result: dict[str, Any] | None = None
    try:
        result = _listen(process, reading, run_folder, attempts)
    except CompanyError:
        process.kill()
        process.communicate()
        raise
    finally:
        signals.process = None
        end_orphans(others)
    if attempt.ending == "running":
        attempt.ending = "lost"
        attempt.cause = f"its driver ended with {describe_exit(process.returncode)}"
    attempt.updated = time.time()
    keep_attempts(run_folder, attempts)
    return result


def _start() -> tuple[subprocess.Popen[str], int]:
    """Start an attempt's process; return it and the descriptor for reading its reports."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "rm_ray.driver.attempt", str(writing)],
        stdin=subprocess.PIPE,
        pass_fds=[writing],
        start_new_session=True,  # a signal from the terminal reaches only the supervisor
        text=True,
    )
    os.close(writing)
    return process, reading


def _task(config: TrainConfig, attempts: list[Attempt]) -> str:
    """Return the last attempt's task, as one line of JSON."""
    *earlier, attempt = attempts
    return json.dumps(
        {
            "config": config.to_json(),
            "number": attempt.number,
            "began": attempt.began,
            "earlier": [asdict(other) for other in earlier],
        }
    )


def _listen(
    process: subprocess.Popen[str], reading: int, run_folder: Storage, attempts: list[Attempt]
) -> dict[str, Any] | None:
    """Record the last attempt's reports until it ends; return its result, if any."""
    attempt, result, written = attempts[-1], None, 0.0
    for changed in read_changes(process, reading, every_s=WRITE_EVERY_S):
        attempt.updated = time.time()
        result = changed.get("result", result)
        for name in changed.keys() - {"result", "lives"}:
            setattr(attempt, name, changed[name])
        if attempt.updated - written > WRITE_EVERY_S:
            keep_attempts(run_folder, attempts)
            written = attempt.updated
    return result


def read_changes(
    process: subprocess.Popen[str],
    reading: int,
    *,
    every_s: float = WRITE_EVERY_S,
    quiet_for_s: float = QUIET_FOR_S,
) -> Iterator[dict[str, Any]]:
    """Yield an attempt's reports until it ends; an empty dict after ``every_s`` of silence.

    Kills an attempt that is silent for ``quiet_for_s``, or reports no progress for that long once
    it trains.
    """
    has_trained, heard, progressed, unread = False, time.monotonic(), time.monotonic(), b""
    while True:
        ready, _, _ = select.select([reading], [], [], every_s)
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
                    progressed = heard
                yield changed
        now = time.monotonic()
        if now - heard > quiet_for_s or (has_trained and now - progressed > quiet_for_s):
            logger.warning("killing the attempt: it has been silent for %.0f s", quiet_for_s)
            process.kill()
        if not ready:
            yield {}
    os.close(reading)
    process.communicate()


def describe_exit(status: int) -> str:
    """Return a description of a process's exit: the signal's name, or the exit status."""
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
