"""Heartbeat of a worker: a thread that reports the training's state every second."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

BEAT_EVERY_S = 1.0

RESIZED = "resized"
"""Reason to stop: the cluster has room for more workers."""

Phase = Literal[
    "starting", "connecting", "waiting", "training", "evaluating", "saving", "exporting"
]
"""What a rank does: "connecting" to the other ranks, "waiting" for data, and so on."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """State of a rank at one moment."""

    rank: int
    pid: int
    node_id: str
    phase: Phase
    step: int
    num_beats: int
    """Number of times training has made progress, such as a micro-batch."""
    stack: str
    """Stack trace of the training thread."""
    first_step: int | None = None
    """Step at which this attempt starts training; None until known."""
    startup: dict[str, float] = field(default_factory=dict)
    """Seconds until the first step, by phase; empty before it."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of this attempt, by activity."""


@dataclass(frozen=True, kw_only=True)
class HeartbeatReading:
    """A rank's latest beat, when it arrived, and when training last made progress."""

    beat: Beat
    received: float
    moved: float


class Heartbeat(threading.Thread):
    """Reports on the thread that creates it, and receives requests to stop."""

    def __init__(self, channel: Any, rank: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._channel, self._rank = channel, rank
        self._thread_id = threading.get_ident()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._ended = threading.Event()
        self._phase: Phase = "starting"
        self._step, self._num_beats = 0, 0
        self.first_step: int | None = None
        self.startup: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.reason_to_stop: str | None = None
        """Why this attempt should end after the current step; None to continue."""

    def __enter__(self) -> Heartbeat:
        """Start beating."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send a last beat, with the last step, and stop."""
        self._ended.set()
        self._send(patience_s=5.0)

    def beat(self) -> None:
        """Count one unit of progress."""
        self._num_beats += 1

    def enter(self, phase: Phase, step: int) -> None:
        """Set the phase and step to report from now on."""
        self._phase, self._step = phase, step
        self.beat()

    def run(self) -> None:
        """Send beats until training or the driver ends."""
        while not self._ended.wait(BEAT_EVERY_S) and self._send():
            pass

    def _send(self, patience_s: float | None = None) -> bool:
        """Send a beat; return whether it arrived."""
        frame = sys._current_frames().get(self._thread_id)
        beat = Beat(
            rank=self._rank,
            pid=os.getpid(),
            node_id=self._node_id,
            phase=self._phase,
            step=self._step,
            num_beats=self._num_beats,
            stack="".join(traceback.format_stack(frame)) if frame is not None else "",
            first_step=self.first_step,
            startup=self.startup,
            spent=self.spent,
        )
        try:
            reason = ray.get(self._channel.beat.remote(beat), timeout=patience_s)
        except ray.exceptions.RayError:
            return False
        self.reason_to_stop = more_pressing(self.reason_to_stop, reason)
        return True


def more_pressing(reason: str | None, other: str | None) -> str | None:
    """Return the reason to stop that takes effect: the first, but any other beats a resize."""
    return other if reason is None or (reason == RESIZED and other is not None) else reason
