"""Outcomes of trials -> settings from best to worst, with mean and spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rm_ray.runs.retention import badness
from rm_ray.sweep.outcomes import Outcome


@dataclass(frozen=True, kw_only=True)
class RankedSetting:
    """The trials of one setting, which differ in their seeds."""

    settings: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    @property
    def values(self) -> list[float]:
        """The metric of each trial that has one."""
        return [one.value for one in self.outcomes if one.value is not None]

    @property
    def mean(self) -> float | None:
        """Mean over the seeds; None if no trial has a value."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for less than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def finished_share(self) -> float:
        """Share of the trials that finished, with a value."""
        finished = [one for one in self.outcomes if one.state == "finished"]
        return sum(one.value is not None for one in finished) / len(self.outcomes)

    def describe_trials(self) -> str:
        """Return how many trials are in which state: '2 finished, 1 finished but diverged'."""
        counts = Counter(one.state + " but diverged" * one.has_diverged for one in self.outcomes)
        return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def rank(outcomes: Sequence[Outcome], metric: str) -> list[RankedSetting]:
    """Return the settings, best first.

    Those of which more trials finished come first, whatever their metric: a trial that was stopped
    early was worse than others at that step, and a mean without it would flatter its setting.
    """
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(json.dumps(outcome.trial.settings), []).append(outcome)
    ranked = [
        RankedSetting(settings=each[0].trial.settings, outcomes=tuple(each))
        for each in grouped.values()
    ]

    def place(setting: RankedSetting) -> tuple[float, float]:
        found = {} if setting.mean is None else {metric: setting.mean}
        return -setting.finished_share, badness(found, metric)

    return sorted(ranked, key=place)


def ranking_table(ranked: Sequence[RankedSetting], metric: str) -> str:
    """Return the ranking as a Markdown table whose columns also align in a terminal."""
    names = list(ranked[0].settings)
    rows = [[*names, metric, "spread", "trials", "steps"]]
    for setting in ranked:
        steps = [one.step for one in setting.outcomes]
        span = str(max(steps)) if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
        shown = [_show(setting.settings[name]) for name in names]
        numbers = [_number(setting.mean), _number(setting.spread)]
        rows.append([*shown, *numbers, setting.describe_trials(), span])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    return "\n".join(lines)


def ranking_json(ranked: Sequence[RankedSetting], metric: str) -> dict[str, Any]:
    """Return the ranking with all trials."""
    return {
        "metric": metric,
        "settings": [
            {
                "settings": setting.settings,
                "mean": setting.mean,
                "spread": setting.spread,
                "trials": [one.to_json() for one in setting.outcomes],
            }
            for setting in ranked
        ],
    }


def _show(value: Any) -> str:
    is_one_line = isinstance(value, str) and value.isprintable()
    text = value if is_one_line else json.dumps(value, ensure_ascii=False)
    return text.replace("|", "\\|")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
