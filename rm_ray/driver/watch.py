"""The thread that monitors the workers while they train, and acts on hangs, losses and growth."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray

from rm_ray.cluster.timeouts import LOOK_EVERY_S, SILENT_AFTER_S
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.hang_detector import Hang, Pace, find_hang
from rm_ray.driver.hung_workers import end_hung_workers
from rm_ray.driver.resizing import Resizing
from rm_ray.driver.startup_loss import StartupLoss
from rm_ray.driver.stop_request import StopRequest, none_would_save
from rm_ray.tracking.heartbeat import RESIZED, HeartbeatReading
from rm_ray.tracking.sender import MetricSender


class Watch(threading.Thread):
    """Reads the heartbeats every ``LOOK_EVERY_S`` and reports progress to the supervisor.

    Kills workers that hang, gives up on workers that will not start, and stops the run if it can
    resume with more workers.
    """

    def __init__(
        self,
        channel: Any,
        attempt_handle: AttemptHandle,
        stop_request: StopRequest,
        sender: MetricSender,
        *,
        num_workers: int,
        count_fitting: Callable[[], int],
    ) -> None:
        """Watch ``num_workers`` workers; ``count_fitting`` returns how many the cluster fits."""
        super().__init__(name="watch", daemon=True)
        self._channel, self._attempt_handle = channel, attempt_handle
        self._stop_request, self._sender = stop_request, sender
        self._count_fitting = count_fitting
        self._startup_loss, self._resizing = StartupLoss(num_workers), Resizing(num_workers)
        self._pace = Pace()
        self._has_stepped = False
        self._ended = threading.Event()
        self.hang: Hang | None = None
        """The hang that was found, if any."""

    def __enter__(self) -> Watch:
        """Start watching."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()
        self.join(timeout=10)
        self._read_heartbeats(patience_s=2.0)  # report the final progress

    def run(self) -> None:
        """Look until the attempt ends or ranks hang."""
        while self.hang is None and not self._ended.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        """Check the workers and the cluster once."""
        self._stop_request.repeat()
        asked_s = self._stop_request.age_s
        heartbeats = self._read_heartbeats(patience_s=SILENT_AFTER_S)
        self._stop_before_the_first_step(heartbeats, asked_s=asked_s)
        try:
            num_fitting = self._count_fitting()
        except ConnectionError:
            return
        cause = self._startup_loss.find(num_begun=len(heartbeats), num_fitting=num_fitting)
        if cause is not None:
            self._attempt_handle.end("lost", cause)
        if not heartbeats:
            return
        self.hang = find_hang(heartbeats, stall_s=self._pace.stall_s)
        if self.hang is not None:
            end_hung_workers(self.hang, heartbeats)
            return
        self._pace.look(heartbeats)
        if self._resizing.is_due(num_fitting):
            self._stop_request.ask(RESIZED)

    def _stop_before_the_first_step(
        self, heartbeats: Sequence[HeartbeatReading], *, asked_s: float
    ) -> None:
        """End the attempt if a stop is requested and no rank has a step to save."""
        # Remember it: a silent or restarted channel reports no steps.
        self._has_stepped = self._has_stepped or any(one.beat.startup for one in heartbeats)
        reason = self._stop_request.reason
        if reason is None or self._has_stepped:
            return
        if none_would_save(heartbeats, asked_s=asked_s):
            self._attempt_handle.end("stopped", reason)

    def _read_heartbeats(self, *, patience_s: float) -> list[HeartbeatReading]:
        """Return the heartbeats and report their progress; empty if the channel is silent."""
        try:
            heartbeats: list[HeartbeatReading] = ray.get(
                self._channel.heartbeats.remote(), timeout=patience_s
            )
        except ray.exceptions.RayError:
            return []  # fit() or the supervisor reports the failure
        if heartbeats:
            self._attempt_handle.tell(describe_progress(heartbeats, unsent=self._sender.unsent))
        return heartbeats


def describe_progress(heartbeats: Sequence[HeartbeatReading], *, unsent: int) -> dict[str, Any]:
    """Return an attempt's progress, from the lowest rank, and the number of unsent items."""
    beat = min(heartbeats, key=lambda one: one.beat.rank).beat
    return {
        "step": beat.step,
        "first_step": beat.first_step,
        "startup": beat.startup,
        "spent": beat.spent,
        "mlflow_unsent": unsent,
    }
