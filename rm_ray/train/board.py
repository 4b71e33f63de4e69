"""The board on which rank 0 writes how far the run is, for the driver to show."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

import ray

logger = logging.getLogger(__name__)


class ProgressBoard:
    """Lines from the workers, kept until the driver fetches them."""

    def __init__(self) -> None:
        self._status = ""
        self._lines: list[str] = []

    def set_status(self, status: str) -> None:
        """Replace the live line."""
        self._status = status

    def add_line(self, line: str) -> None:
        """Add a line that stays."""
        self._lines.append(line)

    def fetch(self) -> tuple[str, list[str]]:
        """Return the live line and the lines since the last call."""
        lines, self._lines = self._lines, []
        return self._status, lines


def start_board() -> Any:
    """Start a board as an actor beside the driver."""
    return ray.remote(num_cpus=0)(ProgressBoard).remote()


class BoardWriter(logging.Handler):
    """Rank 0's side: the live line, at most twice a second, and what our modules log."""

    def __init__(self, board: Any) -> None:
        super().__init__(level=logging.INFO)
        self._board = board
        self._last = 0.0

    def status(self, line: str, *, force: bool = False) -> None:
        """Show how far the run is."""
        if force or time.monotonic() - self._last > 0.5:
            self._last = time.monotonic()
            self._board.set_status.remote(line)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a log record on to the driver."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self._board.add_line.remote(prefix + record.getMessage())


class BoardReader:
    """The driver's side: a thread that logs new lines and shows the live line.

    On a terminal the live line is rewritten in place; elsewhere (``ray job submit``) it is logged
    every few seconds.
    """

    def __init__(self, board: Any, *, every_s: float = 5.0) -> None:
        self._board, self._stream, self._every_s = board, sys.stdout, every_s
        self._stop = threading.Event()
        self._shown, self._shown_at = "", 0.0
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> BoardReader:
        """Begin to show."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show what is left and stop."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            self._show(last=False)
        self._show(last=True)

    def _show(self, *, last: bool) -> None:
        try:
            status, lines = ray.get(self._board.fetch.remote(), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            return
        on_terminal = self._stream.isatty()
        if on_terminal and (lines or status != self._shown):
            self._stream.write("\r\x1b[K")
        for line in lines:
            logger.info("%s", line)
        due = last or time.monotonic() - self._shown_at >= self._every_s
        if on_terminal and status:
            self._stream.write(status + ("\n" if last else ""))
            self._stream.flush()
        elif status != self._shown and due:
            logger.info("%s", status)
        else:
            return
        self._shown, self._shown_at = status, time.monotonic()
