"""Rewards of preferences -> a report on the model, with benchmarks' own averages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rm_ray.evaluation.reports.group_report import find_worst, group_report
from rm_ray.evaluation.reward_bench import ScoredPrompt, score_benchmark
from rm_ray.evaluation.scored_groups import ScoredGroups

NUM_WORST = 50


@dataclass(frozen=True, kw_only=True)
class ScoredPreferences:
    """N prompts and their responses, with comparisons among them."""

    groups: ScoredGroups
    """The responses of each prompt."""
    sources: list[str]
    subsets: list[str]
    prompts: list[ScoredPrompt]
    """Those whose responses are correct or incorrect, for the benchmarks' averages."""
    rows: list[dict[str, Any]]
    """The original rows."""
    unusable: dict[str, int] = field(default_factory=dict)
    """Scored rows whose ranks, scores or preference cannot be used, by reason."""


def preference_report(
    preferences: ScoredPreferences, raw: ScoredGroups | None = None
) -> dict[str, Any]:
    """Return the groups' report, the benchmark's own averages, and the worst rows.

    ``raw`` has the groups with raw rewards, if those of the preferences are standardized.
    """
    worst = find_worst(preferences.groups, NUM_WORST)
    return {
        **group_report(preferences.groups, preferences.sources, preferences.subsets, raw=raw),
        "benchmark": score_benchmark(preferences.prompts, preferences.subsets),
        "worst": [preferences.rows[i] for i in worst],
    }
