"""Ray Tune's view of a trial: its evaluations, read from the run's folder as they come."""

from __future__ import annotations

import math
import time
from typing import Any

from ray import tune

from rm_ray.runs.evaluations import read_evaluations
from rm_ray.runs.layout import RESULT
from rm_ray.runs.retention import badness
from rm_ray.storage import Storage
from rm_ray.sweep.record import read_mark

STEP = "step"
"""Name of the step in Tune's results."""

ANSWER_S, LOOK_EVERY_S = 2.0, 0.5
"""Seconds after which Tune is answered even without news, so that it can stop the trial at any
time; and between two looks at the folder."""


WORST = 1e30
"""What Tune hears, with the sign that is worst, of a metric that is not finite: ASHA compares NaN
with nothing, and the percentile of infinite values is NaN."""


class Follower(tune.Trainable):  # type: ignore[misc]
    """Reports a trial's evaluations to Tune, those of earlier commands first.

    It trains nothing: the sweep's own process starts and stops the run. A follower that is killed
    costs nothing, and one of a trial that is over reports all that is known and ends, so that the
    scheduler of a resumed sweep knows what the first one knew.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Remember what to read: ``sweep`` (a path or URI), ``trial`` and ``metric``."""
        self._folder = Storage.open(config["sweep"])
        self._trial, self._metric = config["trial"], config["metric"]
        self._seen: set[str] = set()

    def step(self) -> dict[str, Any]:
        """Return the next evaluation, that the trial has ended, or nothing after ``ANSWER_S``."""
        give_up = time.monotonic() + ANSWER_S
        while True:
            is_over = self._is_over()  # asked first: an evaluation may come with the end
            if (found := self._next()) is not None:
                return found
            if is_over:
                return {"done": True}
            if time.monotonic() > give_up:
                return {}
            time.sleep(LOOK_EVERY_S)

    def _next(self) -> dict[str, Any] | None:
        run_folder = self._folder.folder(self._trial)
        for found in read_evaluations(run_folder, self._metric, seen=self._seen):
            self._seen.add(found.file)
            return {STEP: found.step, self._metric: self._judged(found.metrics)}
        return None

    def _judged(self, metrics: dict[str, float]) -> float:
        value = metrics.get(self._metric, math.nan)
        worst = WORST * badness({self._metric: 1.0}, self._metric)
        return value if math.isfinite(value) else worst

    def _is_over(self) -> bool:
        has_result = self._folder.exists(f"{self._trial}/{RESULT}")
        return has_result or read_mark(self._folder, self._trial) is not None
