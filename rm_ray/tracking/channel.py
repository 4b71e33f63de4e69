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
from rm_ray.tracking.heartbeat import Beat, HeartbeatReading, more_pressing
from rm_ray.tracking.prometheus import RunGauges
from rm_ray.tracking.sender import MetricSender, Table

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.5

PATIENCE_S = 30.0
"""How long the driver waits for the last news of a run that is over."""


@dataclass
class ChannelUpdate:
    """What rank 0 has put up since the driver last looked; the live line stays."""

    status: str = ""
    lines: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


class Channel:
    """Keeps what rank 0 puts up until the driver fetches it, and the last pulse of every rank."""

    def __init__(self) -> None:
        self._update = ChannelUpdate()
        self._mlflow_run_id: str | None = None
        self._readings: dict[int, HeartbeatReading] = {}
        self._reason_to_stop: str | None = None

    def post(self, update: ChannelUpdate) -> None:
        """Add to what is there; replace the live line."""
        self._update.status = update.status or self._update.status
        self._update.lines += update.lines
        self._update.records += update.records
        self._update.tables += update.tables

    def fetch(self) -> ChannelUpdate:
        """Return what is new since the last call, and the live line."""
        update, self._update = self._update, ChannelUpdate(status=self._update.status)
        return update

    def beat(self, beat: Beat) -> str | None:
        """Take a rank's pulse; answer with the reason to stop training, once there is one."""
        now, before = time.monotonic(), self._readings.get(beat.rank)
        has_moved = before is None or before.beat.num_beats != beat.num_beats
        moved = now if has_moved or before is None else before.moved
        self._readings[beat.rank] = HeartbeatReading(beat=beat, received=now, moved=moved)
        return self._reason_to_stop

    def heartbeats(self) -> list[HeartbeatReading]:
        """Return the last pulse of every rank, with its age in seconds instead of its time."""
        now = time.monotonic()
        return [
            HeartbeatReading(
                beat=reading.beat, received=now - reading.received, moved=now - reading.moved
            )
            for reading in self._readings.values()
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


def open_channel(name: str) -> Any:
    """Start a board as an actor beside the driver; what one that dies forgets, history has.

    Other actors of the job find it by its name.
    """
    channel = ray.remote(max_restarts=-1, max_task_retries=-1)(Channel)
    return channel.options(name=name, **beside_the_driver()).remote()


class ChannelWriter(logging.Handler):
    """Rank 0's side: puts up what it is given, at most twice a second, and what modules log."""

    def __init__(self, channel: Any) -> None:
        super().__init__(level=logging.INFO)
        self._channel = channel
        self._update = ChannelUpdate()
        self._last = 0.0
        self._package = logging.getLogger("rm_ray")

    def __enter__(self) -> ChannelWriter:
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
        self._update.status = line
        self._flush_if_due()

    def record(self, *records: Record) -> None:
        """Hand metrics over to MLflow."""
        self._update.records += records

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Hand a table over to MLflow."""
        self._update.tables.append((name, rows))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a log record on to the driver."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self._update.lines.append(prefix + record.getMessage())
        self._flush_if_due(at_once=True)

    def mlflow_run_id(self) -> str | None:
        """Ask what the run is called in MLflow; None while that is not known."""
        found: str | None = ray.get(self._channel.mlflow_run_id.remote())
        return found

    def _flush_if_due(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._last > FLUSH_EVERY_S:
            self._flush()

    def _flush(self) -> Any:
        self._last = time.monotonic()
        update, self._update = self._update, ChannelUpdate()
        return self._channel.post.remote(update)


class ChannelReader:
    """The driver's side: a thread that logs new lines, shows the live line, feeds MLflow, gauges.

    On a terminal the live line is rewritten in place; elsewhere (``ray job submit``) it is logged
    every few seconds.
    """

    def __init__(
        self, channel: Any, sender: MetricSender, gauges: RunGauges, *, every_s: float = 5.0
    ) -> None:
        self._channel, self._sender, self._gauges = channel, sender, gauges
        self._stream, self._every_s = sys.stdout, every_s
        self._stop = threading.Event()
        self._shown, self._shown_at = "", 0.0
        self._has_told_run_id = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ChannelReader:
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
            update: ChannelUpdate = ray.get(self._channel.fetch.remote())
        except ray.exceptions.RayError:
            return
        for record in update.records:
            self._sender.send(record)
        self._gauges.show(update.records)
        self._gauges.set("mlflow_unsent", self._sender.unsent)
        for table in update.tables:
            self._sender.send_table(*table)
        if self._sender.mlflow_run is not None and not self._has_told_run_id:
            self._has_told_run_id = True
            self._channel.set_mlflow_run_id.remote(self._sender.mlflow_run.run_id)
        self._show(update, last=last)

    def _show(self, update: ChannelUpdate, *, last: bool) -> None:
        status = update.status
        on_terminal = self._stream.isatty()
        if on_terminal and (update.lines or status != self._shown):
            self._stream.write("\r\x1b[K")
        for line in update.lines:
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
