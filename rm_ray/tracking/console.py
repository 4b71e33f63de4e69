"""Console output of a training run: log lines, and a live line below them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TextIO

logger = logging.getLogger(__name__)

CLEAR = "\r\x1b[K"
"""Moves the cursor to the start of the line and erases the line."""

STATUS_EVERY_S = 5.0


class Console:
    """Rewrites the live line in place on a terminal; otherwise logs it every few seconds.

    Output is not a terminal in a file or under ``ray job submit``.
    """

    def __init__(self, stream: TextIO, *, every_s: float = STATUS_EVERY_S) -> None:
        self._stream, self._every_s = stream, every_s
        self._shown, self._shown_at = "", 0.0

    def show(self, lines: Sequence[str], status: str, *, last: bool = False) -> None:
        """Log new lines and show ``status`` as the live line; ``last`` ends it."""
        if self._stream.isatty():
            self._rewrite(lines, status, last=last)
        else:
            self._log(lines, status, last=last)

    def _rewrite(self, lines: Sequence[str], status: str, *, last: bool) -> None:
        if not lines and status == self._shown and not last:
            return
        if lines or status:
            self._stream.write(CLEAR)
        _log_all(lines)
        if status:
            self._stream.write(status + ("\n" if last else ""))
            self._stream.flush()
        self._shown = status

    def _log(self, lines: Sequence[str], status: str, *, last: bool) -> None:
        _log_all(lines)
        is_due = last or time.monotonic() - self._shown_at >= self._every_s
        if status != self._shown and is_due:
            logger.info("%s", status)
            self._shown, self._shown_at = status, time.monotonic()


def _log_all(lines: Sequence[str]) -> None:
    for line in lines:
        logger.info("%s", line)
