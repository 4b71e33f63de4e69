"""The driver's handle of its attempt: earlier attempts, and the link to the supervisor."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rm_ray.driver.stop_request import StopRequest
from rm_ray.runs.attempts import Attempt, Ending
from rm_ray.runs.startup import Startup


class AttemptHandle:
    """A running attempt, as the driver sees it; without a supervisor, nothing is reported."""

    def __init__(
        self,
        *,
        number: int = 1,
        startup: Startup | None = None,
        earlier: Sequence[Attempt] = (),
        supervisor: TextIO | None = None,
    ) -> None:
        """Start attempt ``number``, after the ``earlier`` ones.

        ``supervisor`` takes JSON Lines of changed fields, by ``Attempt``'s field names.
        """
        self.number = number
        self.startup = startup or Startup()
        self.earlier = tuple(earlier)
        self._supervisor, self._lock = supervisor, threading.Lock()
        self._stop_request: StopRequest | None = None
        self._reason: str | None = None

    @property
    def run_began(self) -> float:
        """Start of the run, shifted by the gaps between attempts (Unix seconds)."""
        return self.startup.began - sum(attempt.seconds for attempt in self.earlier)

    @property
    def skipped(self) -> frozenset[int]:
        """Steps to skip."""
        return frozenset(a.skips for a in self.earlier if a.skips is not None)

    def tell(self, changed: dict[str, Any]) -> None:
        """Report changed fields to the supervisor."""
        if self._supervisor is not None:
            with self._lock:
                self._supervisor.write(json.dumps(changed) + "\n")

    def end(self, ending: Ending, cause: str) -> None:
        """Report the ending and exit this process at once; do nothing without a supervisor."""
        if self._supervisor is not None:
            self.tell({"ending": ending, "cause": cause})
            os._exit(0)  # Ray may still be waiting for resources

    def stop(self, reason: str) -> bool:
        """Ask the workers to save and stop; return whether there are any."""
        self._reason = reason
        if self._stop_request is not None:
            self._stop_request.ask(reason)
        return self._stop_request is not None

    @contextmanager
    def stoppable(self, stop_request: StopRequest) -> Iterator[None]:
        """Route stop requests to the workers inside this context."""
        self._stop_request = stop_request
        if self._reason is not None:
            stop_request.ask(self._reason)
        try:
            yield
        finally:
            self._stop_request = None
