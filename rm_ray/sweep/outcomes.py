"""What became of each trial, read from its run's folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rm_ray.runs.evaluations import read_evaluations
from rm_ray.runs.layout import RESULT
from rm_ray.storage import Storage
from rm_ray.sweep.record import read_mark
from rm_ray.sweep.trials import Trial

State = Literal["waiting", "unfinished", "finished", "stopped early", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A trial's state, and how its metric went."""

    trial: Trial
    state: State
    evaluated: tuple[tuple[int, float], ...] = ()
    """The metric after each evaluated step; NaN where an evaluation did not give it."""
    cause: str = ""
    """Why it failed."""

    @property
    def value(self) -> float | None:
        """The metric of the last evaluation; None without a finite one, or if the trial failed."""
        if not self.evaluated or self.has_diverged or self.state == "failed":
            return None
        return self.evaluated[-1][1]

    @property
    def has_diverged(self) -> bool:
        """Whether the metric of the last evaluation is not finite."""
        return bool(self.evaluated) and not math.isfinite(self.evaluated[-1][1])

    @property
    def curve(self) -> list[tuple[int, float]]:
        """The evaluated steps that can be drawn, with their metric."""
        return [(step, value) for step, value in self.evaluated if math.isfinite(value)]

    @property
    def step(self) -> int:
        """Step of the last evaluation; 0 if there is none."""
        return self.evaluated[-1][0] if self.evaluated else 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do: it finished, or was stopped early."""
        return self.state in ("finished", "stopped early")

    def to_json(self) -> dict[str, Any]:
        """Return the trial with its outcome."""
        found = {"state": self.state, "step": self.step, "value": self.value}
        return {**self.trial.to_json(), **found, **({"cause": self.cause} if self.cause else {})}


def read_outcomes(folder: Storage, trials: Sequence[Trial], metric: str) -> list[Outcome]:
    """Return the outcome of each trial of the sweep in ``folder``."""
    return [read_outcome(folder, trial, metric) for trial in trials]


def read_outcome(folder: Storage, trial: Trial, metric: str) -> Outcome:
    """Return a trial's outcome; a finished run counts as finished whatever its mark says."""
    run_folder = folder.folder(trial.name)
    state, cause = _find_state(folder, trial, has_begun=bool(run_folder.list()))
    evaluated = tuple(
        (each.step, each.metrics.get(metric, math.nan))
        for each in read_evaluations(run_folder, metric)
    )
    return Outcome(trial=trial, state=state, evaluated=evaluated, cause=cause)


def _find_state(folder: Storage, trial: Trial, *, has_begun: bool) -> tuple[State, str]:
    if folder.exists(f"{trial.name}/{RESULT}"):
        return "finished", ""
    found = read_mark(folder, trial.name)
    if found is not None and found["ending"] == "stopped early":
        return "stopped early", ""
    if found is not None and found["ending"] == "failed":
        return "failed", found["cause"]
    return ("unfinished" if has_begun else "waiting"), ""
