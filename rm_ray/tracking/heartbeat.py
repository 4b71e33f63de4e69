"""The pulse of a worker: a thread that says, every second, what the training does."""

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
"""Connecting is to the other ranks, waiting for data."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a rank does."""

    rank: int
    pid: int
    node_id: str
    phase: Phase
    step: int
    num_beats: int
    """Goes up with every micro-batch."""
    stack: str
    """Where its training thread is."""
    first_step: int | None = None
    """Steps that were done when this attempt began to train; none before that."""
    startup: dict[str, float] = field(default_factory=dict)
    """Seconds until its first step, by phase; empty before it."""
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of this attempt by what they went into."""


@dataclass(frozen=True, kw_only=True)
class HeartbeatReading:
    """A rank's last pulse, when it came, and when the first with as many beats came."""

    beat: Beat
    received: float
    moved: float


class Heartbeat(threading.Thread):
    """Sends the pulse of the thread that makes it, and learns when to stop."""

    def __init__(self, channel: Any, rank: int) -> None:
        super().__init__(name="pulse", daemon=True)
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
        """Why this attempt is to end after the step at hand, if it is."""

    def __enter__(self) -> Heartbeat:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Send a last pulse, with the step that was got to, and stop."""
        self._ended.set()
        self._send(patience_s=5.0)

    def beat(self) -> None:
        """Say that something moved on."""
        self._num_beats += 1

    def enter(self, phase: Phase, step: int) -> None:
        """Say what is done from now on."""
        self._phase, self._step = phase, step
        self.beat()

    def run(self) -> None:
        """Send pulses until the training ends, or the driver has."""
        while not self._ended.wait(BEAT_EVERY_S) and self._send():
            pass

    def _send(self, patience_s: float | None = None) -> bool:
        """Send a pulse; tell whether it arrived."""
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
    """Return the reason to stop that counts: the first one, but any before a resize."""
    return other if reason is None or (reason == RESIZED and other is not None) else reason
