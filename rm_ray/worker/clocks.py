"""The time that a run and its current attempt spend on each activity."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from rm_ray.runs.startup import Startup, describe_startup
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.metrics import GroupMetrics
from rm_ray.train.progress import Progress

T = TypeVar("T")

logger = logging.getLogger(__name__)

Activity = Literal["data wait", "steps", "evaluation", "checkpoints"]


class Clocks:
    """Counts seconds in the run's progress and in this attempt's heartbeat.

    The progress is saved with the weights, so it excludes lost work. The heartbeat reports to the
    driver, which adds up all attempts.
    """

    def __init__(
        self, progress: Progress, heartbeat: Heartbeat, startup: Startup, *, run_began: float
    ) -> None:
        self.progress = progress
        self._heartbeat, self._startup, self._run_began = heartbeat, startup, run_began
        self._updated = time.monotonic()
        self._num_steps = 0
        """Steps of this attempt."""
        self.data_wait = 0.0
        """Seconds that the current step waited for its data."""
        self.checkpoint_wait = 0.0
        """Seconds that this attempt's saves waited for previous checkpoints to finish copying."""

    def start(self) -> None:
        """Start counting: the model is ready to train from the current step."""
        self._heartbeat.first_step = self.progress.step
        self._startup.end("model")
        self._updated = time.monotonic()

    def count_waits(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield steps, and set ``data_wait`` to the seconds spent waiting for each."""
        started = time.monotonic()
        for step in steps:
            self.data_wait = time.monotonic() - started
            if self._num_steps == 0:
                self._startup.end("first batch")
            yield step
            started = time.monotonic()

    def end_step(self, groups: GroupMetrics, computed_s: float) -> float:
        """Count a step with its computing time; return its seconds including the data wait.

        An attempt's first step includes warm-up: it ends the start-up and does not count for the
        speed.
        """
        seconds = self.data_wait + computed_s
        if self._num_steps > 0:
            self.progress.add_timed(groups.count, groups.tokens, groups.flops, seconds)
        else:
            self._startup.end("first step")
            self._heartbeat.startup = self._startup.seconds
            logger.info(describe_startup(self._heartbeat.startup))
        self._num_steps += 1
        self.spend("data wait", self.data_wait)
        self.spend("steps", seconds - self.data_wait)
        return seconds

    @contextmanager
    def spending(self, activity: Activity) -> Iterator[None]:
        """Count the seconds of a block for an activity, unless the block raises."""
        started = time.monotonic()
        yield
        self.spend(activity, time.monotonic() - started)

    def spend(self, activity: Activity, seconds: float) -> None:
        """Count seconds for an activity."""
        self.progress.spent = _added(self.progress.spent, activity, seconds)
        # A new dictionary, since the heartbeat's thread reads it concurrently.
        self._heartbeat.spent = _added(self._heartbeat.spent, activity, seconds)

    def update(self) -> None:
        """Update ``progress.seconds``, the time since the first step over all attempts."""
        now = time.monotonic()
        self.progress.seconds += now - self._updated
        self._updated = now

    @property
    def goodput(self) -> float:
        """The share of the run's time spent in steps, excluding gaps between attempts."""
        return self.progress.spent["steps"] / (time.time() - self._run_began)

    @property
    def attempt(self) -> dict[str, Any]:
        """This attempt's figures for ``result.json``."""
        heartbeat = self._heartbeat
        return {
            "first_step": heartbeat.first_step,
            "startup": heartbeat.startup,
            "spent": heartbeat.spent,
        }


def _added(spent: dict[str, float], activity: str, seconds: float) -> dict[str, float]:
    return {**spent, activity: spent.get(activity, 0.0) + seconds}
