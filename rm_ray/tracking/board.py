"""The board between workers and driver: how far the run is, what it logs, who is still alive."""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from rm_ray.cluster.placement import beside_the_driver
from rm_ray.runs.history import Record
from rm_ray.tracking.gauges import RunGauges
from rm_ray.tracking.heartbeat import Felt, Pulse, more_pressing
from rm_ray.tracking.shipping import MetricShipper, Table

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.5

PATIENCE_S = 30.0
"""How long the driver waits for the last news of a run that is over."""


@dataclass
class News:
    """What rank 0 has put up since the driver last looked; the live line stays."""

    status: str = ""
    lines: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


class Board:
    """Keeps what rank 0 puts up until the driver fetches it, and the last pulse of every rank."""

    def __init__(self) -> None:
        self._news = News()
        self._mlflow_run_id: str | None = None
        self._pulses: dict[int, Felt] = {}
        self._reason_to_stop: str | None = None

    def put_up(self, news: News) -> None:
        """Add to what is there; replace the live line."""
        self._news.status = news.status or self._news.status
        self._news.lines += news.lines
        self._news.records += news.records
        self._news.tables += news.tables

    def fetch(self) -> News:
        """Return what is new since the last call, and the live line."""
        news, self._news = self._news, News(status=self._news.status)
        return news

    def pulse(self, pulse: Pulse) -> str | None:
        """Take a rank's pulse; answer with the reason to stop training, once there is one."""
        now, before = time.monotonic(), self._pulses.get(pulse.rank)
        has_moved = before is None or before.pulse.num_beats != pulse.num_beats
        moved = now if has_moved or before is None else before.moved
        self._pulses[pulse.rank] = Felt(pulse=pulse, felt=now, moved=moved)
        return self._reason_to_stop

    def pulses(self) -> list[Felt]:
        """Return the last pulse of every rank, with its age in seconds instead of its time."""
        now = time.monotonic()
        return [
            Felt(pulse=felt.pulse, felt=now - felt.felt, moved=now - felt.moved)
            for felt in self._pulses.values()
        ]

    def ask_to_stop(self, reason: str) -> None:
        """Have the workers save after the step at hand, and end this attempt."""
        self._reason_to_stop = more_pressing(self._reason_to_stop, reason)

    def set_mlflow_run_id(self, run_id: str) -> None:
        """Tell the workers what the run is called in MLflow."""
        self._mlflow_run_id = run_id

    def mlflow_run_id(self) -> str | None:
        """Return what the run is called in MLflow, once that is known."""
        return self._mlflow_run_id


def start_board(name: str) -> Any:
    """Start a board as an actor beside the driver; what one that dies forgets, history has.

    Other actors of the job find it by its name.
    """
    board = ray.remote(max_restarts=-1, max_task_retries=-1)(Board)
    return board.options(name=name, **beside_the_driver()).remote()


class BoardWriter(logging.Handler):
    """Rank 0's side: puts up what it is given, at most twice a second, and what modules log."""

    def __init__(self, board: Any) -> None:
        super().__init__(level=logging.INFO)
        self._board = board
        self._news = News()
        self._last = 0.0
        self._package = logging.getLogger("rm_ray")

    def __enter__(self) -> BoardWriter:
        """Begin to put up what modules log."""
        self._package.setLevel(logging.INFO)
        self._package.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Put up the rest, and see that it has arrived."""
        self._package.removeHandler(self)
        ray.get(self._flush())
        self.close()

    def status(self, line: str) -> None:
        """Show how far the run is."""
        self._news.status = line
        self._flush_if_due()

    def record(self, *records: Record) -> None:
        """Hand metrics over to MLflow."""
        self._news.records += records

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Hand a table over to MLflow."""
        self._news.tables.append((name, rows))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a log record on to the driver."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self._news.lines.append(prefix + record.getMessage())
        self._flush_if_due(at_once=True)

    def mlflow_run_id(self) -> str | None:
        """Ask what the run is called in MLflow; None while that is not known."""
        found: str | None = ray.get(self._board.mlflow_run_id.remote())
        return found

    def _flush_if_due(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._last > FLUSH_EVERY_S:
            self._flush()

    def _flush(self) -> Any:
        self._last = time.monotonic()
        news, self._news = self._news, News()
        return self._board.put_up.remote(news)


class BoardReader:
    """The driver's side: a thread that logs new lines, shows the live line, feeds MLflow, gauges.

    On a terminal the live line is rewritten in place; elsewhere (``ray job submit``) it is logged
    every few seconds.
    """

    def __init__(
        self, board: Any, shipper: MetricShipper, gauges: RunGauges, *, every_s: float = 5.0
    ) -> None:
        self._board, self._shipper, self._gauges = board, shipper, gauges
        self._stream, self._every_s = sys.stdout, every_s
        self._stop = threading.Event()
        self._shown, self._shown_at = "", 0.0
        self._has_told_run_id = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> BoardReader:
        """Begin to show."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show what is left and stop."""
        self._stop.set()
        self._thread.join(timeout=PATIENCE_S)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_EVERY_S):
            self._read(last=False)
        self._read(last=True)

    def _read(self, *, last: bool) -> None:
        # What is fetched is gone from the board, so an answer that is late is waited for.
        try:
            news: News = ray.get(self._board.fetch.remote())
        except ray.exceptions.RayError:
            return
        for record in news.records:
            self._shipper.send(record)
        self._gauges.show(news.records)
        self._gauges.set("mlflow_unsent", self._shipper.unsent)
        for table in news.tables:
            self._shipper.send_table(*table)
        if self._shipper.run is not None and not self._has_told_run_id:
            self._has_told_run_id = True
            self._board.set_mlflow_run_id.remote(self._shipper.run.run_id)
        self._show(news, last=last)

    def _show(self, news: News, *, last: bool) -> None:
        status = news.status
        on_terminal = self._stream.isatty()
        if on_terminal and (news.lines or status != self._shown):
            self._stream.write("\r\x1b[K")
        for line in news.lines:
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
