"""A request to the workers to save and stop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rm_ray.tracking.heartbeat import HeartbeatReading, more_pressing


class StopRequest:
    """Asks the workers to save after the current step and stop."""

    def __init__(self, channel: Any) -> None:
        """Create a request that is not made yet; ``channel`` is a ``Channel`` actor's handle."""
        self._channel = channel
        self._asked_at = 0.0
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        """Ask the workers to stop; of several reasons, keep the most pressing one."""
        self._asked_at = time.monotonic()
        self.reason = more_pressing(self.reason, reason)
        self._channel.ask_to_stop.remote(reason)

    def repeat(self) -> None:
        """Repeat the request, if any: a restarted channel has forgotten it."""
        if self.reason is not None:
            self._channel.ask_to_stop.remote(self.reason)

    @property
    def age_s(self) -> float:
        """Seconds since the latest request."""
        return time.monotonic() - self._asked_at


def none_would_save(heartbeats: Sequence[HeartbeatReading], *, asked_s: float) -> bool:
    """Return whether no rank has finished a step, judging only by heartbeats since the request.

    The request is ``asked_s`` seconds old. An older heartbeat may predate a finished first step.
    """
    return all(one.received < asked_s and not one.beat.startup for one in heartbeats)
