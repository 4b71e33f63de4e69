"""The driver's watch over the workers: ends those that hang, and lets the run grow and shrink."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rm_ray.cluster.timeouts import (
    COMPANY_S,
    CONNECT_S,
    DATA_S,
    FIRST_STEP_S,
    SILENT_AFTER_S,
    SLOW_S,
    SLOWER,
    SLOWER_THAN_FIRST,
    STALLED_AFTER_S,
)
from rm_ray.tracking.heartbeat import RESIZED, HeartbeatReading, more_pressing

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

LOOKS = 3
"""How often in a row a machine must be seen to have come or gone."""

_STEADY = ("waiting", "training", "evaluating")


@dataclass(frozen=True, kw_only=True)
class Hang:
    """Which ranks do not go on, and what the log says of it."""

    ranks: tuple[HeartbeatReading, ...]
    reason: str
    signature: str = ""
    """What tells a fault of the setup, which comes again, from an accident; empty for that."""


class Pace:
    """How long ranks have stood still between two movements, which tells what is unusual."""

    def __init__(self) -> None:
        self._first_s, self._slowest_s = 0.0, 0.0
        self._still_s, self._is_first = 0.0, True

    def look(self, heartbeats: Sequence[HeartbeatReading]) -> None:
        """Learn from how long ago the ranks have moved."""
        still = min(one.moved for one in heartbeats)
        if still < self._still_s:  # what was slow has ended
            if self._is_first:
                self._first_s = max(self._first_s, self._still_s)
            else:
                self._slowest_s = max(self._slowest_s, self._still_s)
        is_steady = all(one.beat.phase in _STEADY for one in heartbeats)
        self._still_s = still if is_steady else 0.0
        self._is_first = not all(one.beat.startup for one in heartbeats)

    @property
    def stall_s(self) -> float:
        """For how long ranks may stand still in a step that is not their first."""
        if self._slowest_s > 0:
            return max(STALLED_AFTER_S, SLOWER * self._slowest_s)
        return max(STALLED_AFTER_S, SLOWER_THAN_FIRST * self._first_s)


def find_hang(heartbeats: Sequence[HeartbeatReading], *, stall_s: float) -> Hang | None:
    """Return the ranks that hang, given the age of each one's pulse and last movement.

    ``stall_s`` is for how long they may stand still in a step that is not their first.
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
        reason = f"no rank went on for {limit:.0f} s in step {step} ({phases})"
        return Hang(
            ranks=tuple(heartbeats),
            reason=reason,
            signature="connecting" if phases == "connecting" else "",
        )
    return None


def _limit(heartbeats: Sequence[HeartbeatReading], *, stall_s: float) -> float:
    """Return the seconds for which ranks may all stay where they are."""
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


def none_would_save(heartbeats: Sequence[HeartbeatReading], *, asked_s: float) -> bool:
    """Tell whether no rank has taken a step, by pulses from after it was asked to stop.

    That was ``asked_s`` seconds ago. An older pulse may be from before a first step that is done.
    """
    return all(one.received < asked_s and not one.beat.startup for one in heartbeats)


class Watch(threading.Thread):
    """Looks at the board every other second while workers train."""

    def __init__(
        self,
        channel: Any,
        *,
        num_workers: int,
        count_fitting: Callable[[], int],
        on_look: Callable[[list[HeartbeatReading]], None],
        on_loss: Callable[[str], None],
        on_stop: Callable[[str], None],
    ) -> None:
        """Watch ``num_workers``; ``count_fitting`` says for how many the cluster has room.

        ``on_look`` gets the pulses; ``on_loss`` hears why workers that never began will not, and
        ``on_stop`` the reason to stop where none has taken a step, which would have to be saved.
        """
        super().__init__(name="watch", daemon=True)
        self._channel, self._on_look = channel, on_look
        self._on_loss, self._on_stop = on_loss, on_stop
        self._num_workers, self._count_fitting = num_workers, count_fitting
        self._ended = threading.Event()
        self._reason_to_stop: str | None = None
        self._asked_at = 0.0
        self.hang: Hang | None = None
        """What was found to hang, if anything was."""

    def __enter__(self) -> Watch:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._ended.set()
        self.join(timeout=10)
        self._look(patience_s=2.0)  # how far it got

    def ask_to_stop(self, reason: str) -> None:
        """Have the workers save after the step at hand and end; again and again, until they do."""
        self._asked_at = time.monotonic()
        self._reason_to_stop = more_pressing(self._reason_to_stop, reason)
        self._channel.ask_to_stop.remote(reason)

    def run(self) -> None:
        """Look until the attempt ends, or something hangs."""
        pace, more, fewer, alone, has_stepped = Pace(), 0, 0, 0.0, False
        while not self._ended.wait(LOOK_EVERY_S):
            if self._reason_to_stop is not None:  # the board forgets it where it dies
                self._channel.ask_to_stop.remote(self._reason_to_stop)
            asked_s = time.monotonic() - self._asked_at
            heartbeats = self._look(patience_s=SILENT_AFTER_S)
            # A board that does not answer, or has forgotten, knows of no steps either.
            has_stepped = has_stepped or any(one.beat.startup for one in heartbeats)
            is_asked = self._reason_to_stop is not None
            if is_asked and not has_stepped and none_would_save(heartbeats, asked_s=asked_s):
                self._on_stop(str(self._reason_to_stop))
            try:
                fitting = self._count_fitting()
            except ConnectionError:
                continue
            fewer = fewer + 1 if fitting < self._num_workers and not heartbeats else 0
            if fewer == LOOKS:
                self._on_loss("a machine went before the workers began")
            if not heartbeats:
                continue
            alone = alone + LOOK_EVERY_S if len(heartbeats) < self._num_workers else 0.0
            if alone > COMPANY_S:
                began = f"{len(heartbeats)} of {self._num_workers} workers"
                self._on_loss(f"only {began} began within {COMPANY_S:.0f} s")
            self.hang = find_hang(heartbeats, stall_s=pace.stall_s)
            if self.hang is not None:
                end_hung_workers(self.hang, heartbeats)
                return
            pace.look(heartbeats)
            more = more + 1 if fitting > self._num_workers else 0
            if more == LOOKS:
                self.ask_to_stop(RESIZED)

    def _look(self, *, patience_s: float) -> list[HeartbeatReading]:
        """Return the pulses and pass them on; none where the board does not answer."""
        try:
            heartbeats: list[HeartbeatReading] = ray.get(
                self._channel.heartbeats.remote(), timeout=patience_s
            )
        except ray.exceptions.RayError:
            return []  # fit() tells what ended, or the supervisor
        if heartbeats:
            self._on_look(heartbeats)
        return heartbeats


def end_hung_workers(hang: Hang, heartbeats: Sequence[HeartbeatReading]) -> None:
    """Log where every rank is, and kill the ones that hang, wherever they are."""
    logger.warning("%s; the stacks of all ranks follow, and they are started again", hang.reason)
    for one in sorted(heartbeats, key=lambda one: one.beat.rank):
        beat = one.beat
        logger.warning(
            "rank %d, process %d, %s step %d, %.0f s ago:\n%s",
            beat.rank,
            beat.pid,
            beat.phase,
            beat.step,
            one.received,
            beat.stack.rstrip(),
        )
    kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
    killed = []
    for one in hang.ranks:
        there = NodeAffinitySchedulingStrategy(one.beat.node_id, soft=False)
        killed.append(kill.options(scheduling_strategy=there).remote(one.beat.pid))
    done, _ = ray.wait(killed, num_returns=len(killed), timeout=SILENT_AFTER_S)
    if len(done) < len(killed):
        logger.warning("%d ranks cannot be reached to end them", len(killed) - len(done))


def _kill(pid: int) -> None:
    """End a worker of Ray Train on this machine, also one that is stopped."""
    command = Path(f"/proc/{pid}/cmdline")
    if not command.exists() or b"RayTrainWorker" in command.read_bytes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
