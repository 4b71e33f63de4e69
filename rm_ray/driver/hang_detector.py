"""Heartbeats -> the ranks that hang. Pure functions of the readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rm_ray.cluster.timeouts import (
    CONNECT_S,
    DATA_S,
    FIRST_STEP_S,
    SILENT_AFTER_S,
    SLOW_S,
    SLOWER,
    SLOWER_THAN_FIRST,
    STALLED_AFTER_S,
)
from rm_ray.errors import LostError
from rm_ray.tracking.heartbeat import HeartbeatReading

_STEADY = ("waiting", "training", "evaluating")


@dataclass(frozen=True, kw_only=True)
class Hang:
    """Ranks that make no progress, and the reason to log."""

    ranks: tuple[HeartbeatReading, ...]
    reason: str
    signature: str = ""
    """Identifies a setup fault, which would recur; empty for an accident."""

    @property
    def error(self) -> LostError:
        """The error that ends the attempt."""
        return LostError(self.reason, signature=self.signature)


class Pace:
    """The longest pauses between two movements so far, from which the stall limit follows."""

    def __init__(self) -> None:
        self._first_s, self._slowest_s = 0.0, 0.0
        self._still_s, self._is_first = 0.0, True

    def look(self, heartbeats: Sequence[HeartbeatReading]) -> None:
        """Update the pauses from the ranks' latest movements."""
        still = min(one.moved for one in heartbeats)
        if still < self._still_s:  # a rank has moved: the pause is over
            if self._is_first:
                self._first_s = max(self._first_s, self._still_s)
            else:
                self._slowest_s = max(self._slowest_s, self._still_s)
        is_steady = all(one.beat.phase in _STEADY for one in heartbeats)
        self._still_s = still if is_steady else 0.0
        self._is_first = not all(one.beat.startup for one in heartbeats)

    @property
    def stall_s(self) -> float:
        """Limit in seconds without movement, after the first step."""
        if self._slowest_s > 0:
            return max(STALLED_AFTER_S, SLOWER * self._slowest_s)
        return max(STALLED_AFTER_S, SLOWER_THAN_FIRST * self._first_s)


def find_hang(heartbeats: Sequence[HeartbeatReading], *, stall_s: float) -> Hang | None:
    """Return the ranks that hang, from the ages of their heartbeats and movements; None if none do.

    ``stall_s`` is the limit in seconds without movement, after the first step.
    """
    silent = tuple(one for one in heartbeats if one.received > SILENT_AFTER_S)
    if silent:
        ranks = ", ".join(f"{one.beat.rank}" for one in silent)
        return Hang(ranks=silent, reason=f"rank {ranks} silent for {SILENT_AFTER_S:.0f} s")
    if not heartbeats:
        return None
    limit = _limit(heartbeats, stall_s=stall_s)
    if min(one.moved for one in heartbeats) > limit:
        step = max(one.beat.step for one in heartbeats)
        phases = " or ".join(sorted({one.beat.phase for one in heartbeats}))
        reason = f"no rank made progress for {limit:.0f} s in step {step} ({phases})"
        return Hang(
            ranks=tuple(heartbeats),
            reason=reason,
            signature="connecting" if phases == "connecting" else "",
        )
    return None


def _limit(heartbeats: Sequence[HeartbeatReading], *, stall_s: float) -> float:
    """Return the limit in seconds without movement on any rank."""
    phases = {one.beat.phase for one in heartbeats}
    if "waiting" in phases:
        return DATA_S
    if phases == {"connecting"}:
        return CONNECT_S
    if phases.isdisjoint(_STEADY):
        return SLOW_S
    if not all(one.beat.startup for one in heartbeats):
        return FIRST_STEP_S
    return stall_s
