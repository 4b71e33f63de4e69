"""The channel from workers to driver: metrics, log lines, the live line, and heartbeats."""

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
from rm_ray.tracking.console import Console
from rm_ray.tracking.heartbeat import Beat, HeartbeatReading, more_pressing
from rm_ray.tracking.prometheus import RunGauges
from rm_ray.tracking.sender import MetricSender, Table

FLUSH_EVERY_S = 0.5

PATIENCE_S = 30.0
"""Seconds that the driver waits for the last update when a run ends."""


@dataclass
class ChannelUpdate:
    """What rank 0 has posted since the driver's last fetch; the live line persists."""

    status: str = ""
    """The live line."""
    lines: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


class Channel:
    """Buffers rank 0's posts for the driver, and keeps every rank's latest beat."""

    def __init__(self) -> None:
        self._update = ChannelUpdate()
        self._mlflow_run_id: str | None = None
        self._readings: dict[int, HeartbeatReading] = {}
        self._reason_to_stop: str | None = None

    def post(self, update: ChannelUpdate) -> None:
        """Append to the pending update; replace the live line unless the new one is empty."""
        self._update.status = update.status or self._update.status
        self._update.lines += update.lines
        self._update.records += update.records
        self._update.tables += update.tables

    def fetch(self) -> ChannelUpdate:
        """Return everything posted since the last call, and the live line."""
        update, self._update = self._update, ChannelUpdate(status=self._update.status)
        return update

    def beat(self, beat: Beat) -> str | None:
        """Record a rank's beat; return the reason to stop training, if any."""
        now, before = time.monotonic(), self._readings.get(beat.rank)
        has_moved = before is None or before.beat.num_beats != beat.num_beats
        moved = now if has_moved or before is None else before.moved
        self._readings[beat.rank] = HeartbeatReading(beat=beat, received=now, moved=moved)
        return self._reason_to_stop

    def heartbeats(self) -> list[HeartbeatReading]:
        """Return each rank's latest beat, with ages in seconds instead of times."""
        now = time.monotonic()
        return [
            HeartbeatReading(
                beat=reading.beat, received=now - reading.received, moved=now - reading.moved
            )
            for reading in self._readings.values()
        ]

    def ask_to_stop(self, reason: str) -> None:
        """Ask the workers to save after the current step and end this attempt."""
        self._reason_to_stop = more_pressing(self._reason_to_stop, reason)

    def set_mlflow_run_id(self, run_id: str) -> None:
        """Store the MLflow run id for the workers."""
        self._mlflow_run_id = run_id

    def mlflow_run_id(self) -> str | None:
        """Return the MLflow run id; None until MLflow has answered."""
        return self._mlflow_run_id


def open_channel(name: str) -> Any:
    """Start a channel actor on the driver's machine; return its handle.

    Other actors of the job find it by name. Ray restarts it if it dies; lost records are still in
    the run's history.
    """
    channel = ray.remote(max_restarts=-1, max_task_retries=-1)(Channel)
    return channel.options(name=name, **beside_the_driver()).remote()


class ChannelWriter(logging.Handler):
    """Rank 0's side: posts log lines at once, and everything else up to twice a second."""

    def __init__(self, channel: Any) -> None:
        super().__init__(level=logging.INFO)
        self._channel = channel
        self._update = ChannelUpdate()
        self._last = 0.0
        self._package = logging.getLogger("rm_ray")

    def __enter__(self) -> ChannelWriter:
        """Start posting the package's log records."""
        self._package.setLevel(logging.INFO)
        self._package.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Post the rest and wait for it to arrive."""
        self._package.removeHandler(self)
        self.send()
        self.close()

    def send(self) -> None:
        """Post everything so far and wait for it to arrive."""
        ray.get(self._flush())

    def status(self, line: str) -> None:
        """Replace the live line."""
        self._update.status = line
        self._flush_if_due()

    def record(self, *records: Record) -> None:
        """Send metrics to MLflow."""
        self._update.records += records

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Send a table to MLflow."""
        self._update.tables.append((name, rows))

    def emit(self, record: logging.LogRecord) -> None:
        """Post a log record."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self._update.lines.append(prefix + record.getMessage())
        self._flush_if_due(at_once=True)

    def mlflow_run_id(self) -> str | None:
        """Return the MLflow run id; None until MLflow has answered."""
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
    """The driver's side: a thread that feeds the console, MLflow and the gauges."""

    def __init__(self, channel: Any, sender: MetricSender, gauges: RunGauges) -> None:
        self._channel, self._sender, self._gauges = channel, sender, gauges
        self._console = Console(sys.stdout)
        self._stop = threading.Event()
        self._has_posted_run_id = False
        self._thread = threading.Thread(target=self._run, name="channel-reader", daemon=True)

    def __enter__(self) -> ChannelReader:
        """Start reading."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Read the rest and stop."""
        self._stop.set()
        self._thread.join(timeout=PATIENCE_S)

    def _run(self) -> None:
        while not self._stop.wait(FLUSH_EVERY_S):
            self._read(last=False)
        self._read(last=True)

    def _read(self, *, last: bool) -> None:
        # No timeout: fetching removes the update from the channel, so a dropped answer is lost.
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
        if self._sender.mlflow_run is not None and not self._has_posted_run_id:
            self._has_posted_run_id = True
            self._channel.set_mlflow_run_id.remote(self._sender.mlflow_run.run_id)
        self._console.show(update.lines, update.status, last=last)
