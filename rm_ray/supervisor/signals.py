"""Signals to the command, passed on to the attempt that is under way."""

from __future__ import annotations

import logging
import signal
import subprocess
import time

from rm_ray.errors import StoppedError

logger = logging.getLogger(__name__)

INTERRUPTED, TERMINATED = "interrupted", "terminated"
"""Reasons to stop that end the command; after others, such as a resize, the run goes on."""


class Signals:
    """Asks the attempt to stop at the first signal, and ends it at the second."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._reason: str | None = None

    def __enter__(self) -> Signals:
        """Begin to listen."""
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Leave signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch_over(self, process: subprocess.Popen[str], task: str) -> None:
        """Give an attempt its task, and from now on pass the signals on, also one that came."""
        say(process, task)
        self.process = process
        if self._reason is not None:
            say(process, self._reason)

    def sleep(self, seconds: float, *, step: int) -> None:
        """Wait between attempts.

        Raises:
            StoppedError: a signal came.
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
            logger.warning("saving a checkpoint, and stopping; a second signal stops at once")
            say(self.process, self._reason)


def say(process: subprocess.Popen[str], line: str) -> None:
    """Write a line to an attempt."""
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended, which is seen elsewhere
