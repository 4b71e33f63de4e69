"""SIGINT and SIGTERM to a sweep: its trials take a checkpoint and stop."""

from __future__ import annotations

import logging
import signal

from rm_ray.supervisor.signals import INTERRUPTED, TERMINATED
from rm_ray.sweep.trial_processes import TrialProcesses

logger = logging.getLogger(__name__)


class StopSignals:
    """Ends the schedule and stops the trials on the first signal, kills them on the second.

    The schedule ends by a KeyboardInterrupt: nothing in it needs to be saved. Leaving the context
    waits for the trials; after an error, it stops them first.
    """

    def __init__(self, processes: TrialProcesses) -> None:
        self._processes = processes
        self._is_leaving = False
        self.reason: str | None = None
        """Why the sweep stops; None without a signal."""

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Wait for the trials, then restore the previous handlers."""
        self._is_leaving = True
        try:
            if kind is not None:
                self._processes.stop_all()
            self._processes.join()
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)
        return kind is KeyboardInterrupt and self.reason is not None

    def _on_signal(self, number: int, _: object) -> None:
        if self.reason is not None:
            self._processes.kill()
            return
        self.reason = INTERRUPTED if number == signal.SIGINT else TERMINATED
        logger.warning("the trials save a checkpoint and stop; a second signal kills them")
        self._processes.stop_all()
        if not self._is_leaving:
            raise KeyboardInterrupt
