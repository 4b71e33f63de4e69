"""The end of an evaluator that makes no progress."""

from __future__ import annotations

import faulthandler
import time
from dataclasses import dataclass

from rm_ray.cluster.timeouts import SLOW_S, SLOWER, UPLOAD_S


@dataclass(kw_only=True)
class Pulse:
    """Ends this process, with the stacks of its threads in its log, if it stays where it is.

    Python's ``faulthandler`` waits, in a thread that needs no interpreter lock. Ray starts another
    process, and a try that had begun counts.
    """

    limit_s: float = SLOW_S + UPLOAD_S
    """How long one thing may take: to check a checkpoint's files, read a model, or score a
    micro-batch. Whatever took longer before extends it."""
    _moved: float | None = None
    _slowest_s: float = 0.0

    def move(self) -> None:
        """Note progress; the first call begins the watch."""
        now = time.monotonic()
        if self._moved is not None:
            self._slowest_s = max(self._slowest_s, now - self._moved)
        self._moved = now
        limit = max(self.limit_s, SLOWER * self._slowest_s)
        faulthandler.dump_traceback_later(limit, exit=True)
