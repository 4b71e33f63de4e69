"""Forwarding of SIGINT and SIGTERM to the running attempt."""

from __future__ import annotations

import logging
import signal
import subprocess
import time

from rm_ray.errors import StoppedError

logger = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = "interrupted", "terminated"
"""Reasons to stop that end the command; after any other, such as a resize, the run resumes."""


class Signals:
    """Asks the attempt to stop on the first signal, and kills it on the second."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._reason: str | None = None

    def __enter__(self) -> Signals:
        """Install the handlers."""
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch_over(self, process: subprocess.Popen[str], task: str) -> None:
        """Send an attempt its task, then forward signals to it, including one already received."""
        say(process, task)
        self.process = process
        if self._reason is not None:
            say(process, self._reason)

    def sleep(self, seconds: float, *, step: int) -> None:
        """Wait between attempts.

        Raises:
            StoppedError: a signal was received.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._reason is None:
            time.sleep(0.1)
        if self._reason is not None:
            raise StoppedError(self._reason, step, None)

    def _on_signal(self, number: int, _: object) -> None:
        again = self._reason is not None
        self._reason = INTERRUPTED if number == signal.SIGINT else TERMINATED
        if self.process is None:
            return
        if again:
            self.process.kill()
        else:
            logger.warning("saving a checkpoint and stopping; a second signal stops immediately")
            say(self.process, self._reason)


def say(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to an attempt's standard input."""
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has exited; run_attempt notices
