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

from rm_ray.cluster.limits import (
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
from rm_ray.tracking.heartbeat import RESIZED, Felt, more_pressing

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

LOOKS = 3
"""How often in a row a machine must be seen to have come or gone."""

_STEADY = ("waiting", "training", "evaluating")


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """Which ranks do not go on, and what the log says of it."""

    ranks: tuple[Felt, ...]
    reason: str
    signature: str = ""
    """What tells a fault of the setup, which comes again, from an accident; empty for that."""


class Pace:
    """How long ranks have stood still between two movements, which tells what is unusual."""

    def __init__(self) -> None:
        self._first_s, self._slowest_s = 0.0, 0.0
        self._still_s, self._is_first = 0.0, True

    def look(self, felt: Sequence[Felt]) -> None:
        """Learn from how long ago the ranks have moved."""
        still = min(one.moved for one in felt)
        if still < self._still_s:  # what was slow has ended
            if self._is_first:
                self._first_s = max(self._first_s, self._still_s)
            else:
                self._slowest_s = max(self._slowest_s, self._still_s)
        is_steady = all(one.pulse.phase in _STEADY for one in felt)
        self._still_s = still if is_steady else 0.0
        self._is_first = not all(one.pulse.startup for one in felt)

    @property
    def stall_s(self) -> float:
        """For how long ranks may stand still in a step that is not their first."""
        if self._slowest_s > 0:
            return max(STALLED_AFTER_S, SLOWER * self._slowest_s)
        return max(STALLED_AFTER_S, SLOWER_THAN_FIRST * self._first_s)


def find_stuck(felt: Sequence[Felt], *, stall_s: float) -> Stuck | None:
    """Return the ranks that hang, given the age of each one's pulse and last movement.

    ``stall_s`` is for how long they may stand still in a step that is not their first.
    """
    silent = tuple(one for one in felt if one.felt > SILENT_AFTER_S)
    if silent:
        ranks = ", ".join(f"{one.pulse.rank}" for one in silent)
        return Stuck(ranks=silent, reason=f"rank {ranks} silent for {SILENT_AFTER_S:.0f} s")
    if not felt:
        return None
    limit = _limit(felt, stall_s=stall_s)
    if min(one.moved for one in felt) > limit:
        step = max(one.pulse.step for one in felt)
        phases = " or ".join(sorted({one.pulse.phase for one in felt}))
        reason = f"no rank went on for {limit:.0f} s in step {step} ({phases})"
        return Stuck(
            ranks=tuple(felt),
            reason=reason,
            signature="connecting" if phases == "connecting" else "",
        )
    return None


def _limit(felt: Sequence[Felt], *, stall_s: float) -> float:
    """Return the seconds for which ranks may all stay where they are."""
    phases = {one.pulse.phase for one in felt}
    if "waiting" in phases:
        return DATA_S
    if phases == {"connecting"}:
        return CONNECT_S
    if phases.isdisjoint(_STEADY):
        return SLOW_S
    if not all(one.pulse.startup for one in felt):
        return FIRST_STEP_S
    return stall_s


def none_would_save(felt: Sequence[Felt], *, asked_s: float) -> bool:
    """Tell whether no rank has taken a step, by pulses from after it was asked to stop.

    That was ``asked_s`` seconds ago. An older pulse may be from before a first step that is done.
    """
    return all(one.felt < asked_s and not one.pulse.startup for one in felt)


class Watch(threading.Thread):
    """Looks at the board every other second while workers train."""

    def __init__(
        self,
        board: Any,
        *,
        num_workers: int,
        count_fitting: Callable[[], int],
        on_look: Callable[[list[Felt]], None],
        on_loss: Callable[[str], None],
        on_stop: Callable[[str], None],
    ) -> None:
        """Watch ``num_workers``; ``count_fitting`` says for how many the cluster has room.

        ``on_look`` gets the pulses; ``on_loss`` hears why workers that never began will not, and
        ``on_stop`` the reason to stop where none has taken a step, which would have to be saved.
        """
        super().__init__(name="watch", daemon=True)
        self._board, self._on_look = board, on_look
        self._on_loss, self._on_stop = on_loss, on_stop
        self._num_workers, self._count_fitting = num_workers, count_fitting
        self._ended = threading.Event()
        self._reason_to_stop: str | None = None
        self._asked_at = 0.0
        self.stuck: Stuck | None = None
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
        self._board.ask_to_stop.remote(reason)

    def run(self) -> None:
        """Look until the attempt ends, or something hangs."""
        pace, more, fewer, alone, has_stepped = Pace(), 0, 0, 0.0, False
        while not self._ended.wait(LOOK_EVERY_S):
            if self._reason_to_stop is not None:  # the board forgets it where it dies
                self._board.ask_to_stop.remote(self._reason_to_stop)
            asked_s = time.monotonic() - self._asked_at
            felt = self._look(patience_s=SILENT_AFTER_S)
            # A board that does not answer, or has forgotten, knows of no steps either.
            has_stepped = has_stepped or any(one.pulse.startup for one in felt)
            is_asked = self._reason_to_stop is not None
            if is_asked and not has_stepped and none_would_save(felt, asked_s=asked_s):
                self._on_stop(str(self._reason_to_stop))
            try:
                fitting = self._count_fitting()
            except ConnectionError:
                continue
            fewer = fewer + 1 if fitting < self._num_workers and not felt else 0
            if fewer == LOOKS:
                self._on_loss("a machine went before the workers began")
            if not felt:
                continue
            alone = alone + LOOK_EVERY_S if len(felt) < self._num_workers else 0.0
            if alone > COMPANY_S:
                began = f"{len(felt)} of {self._num_workers} workers"
                self._on_loss(f"only {began} began within {COMPANY_S:.0f} s")
            self.stuck = find_stuck(felt, stall_s=pace.stall_s)
            if self.stuck is not None:
                end_stuck(self.stuck, felt)
                return
            pace.look(felt)
            more = more + 1 if fitting > self._num_workers else 0
            if more == LOOKS:
                self.ask_to_stop(RESIZED)

    def _look(self, *, patience_s: float) -> list[Felt]:
        """Return the pulses and pass them on; none where the board does not answer."""
        try:
            felt: list[Felt] = ray.get(self._board.pulses.remote(), timeout=patience_s)
        except ray.exceptions.RayError:
            return []  # fit() tells what ended, or the supervisor
        if felt:
            self._on_look(felt)
        return felt


def end_stuck(stuck: Stuck, felt: Sequence[Felt]) -> None:
    """Log where every rank is, and kill the ones that hang, wherever they are."""
    logger.warning("%s; the stacks of all ranks follow, and they are started again", stuck.reason)
    for one in sorted(felt, key=lambda one: one.pulse.rank):
        pulse = one.pulse
        logger.warning(
            "rank %d, process %d, %s step %d, %.0f s ago:\n%s",
            pulse.rank,
            pulse.pid,
            pulse.phase,
            pulse.step,
            one.felt,
            pulse.stack.rstrip(),
        )
    kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
    killed = []
    for one in stuck.ranks:
        there = NodeAffinitySchedulingStrategy(one.pulse.node_id, soft=False)
        killed.append(kill.options(scheduling_strategy=there).remote(one.pulse.pid))
    done, _ = ray.wait(killed, num_returns=len(killed), timeout=SILENT_AFTER_S)
    if len(done) < len(killed):
        logger.warning("%d ranks cannot be reached to end them", len(killed) - len(done))


def _kill(pid: int) -> None:
    """End a worker of Ray Train on this machine, also one that is stopped."""
    command = Path(f"/proc/{pid}/cmdline")
    if not command.exists() or b"RayTrainWorker" in command.read_bytes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
