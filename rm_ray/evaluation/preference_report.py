"""Rewards of preferences -> a report on the model, with benchmarks' own averages."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from rm_ray.errors import InputError
from rm_ray.evaluation.pairwise import ScoredPairs, find_worst, pairwise_report
from rm_ray.evaluation.reward_bench import (
    SECTIONS,
    ScoredPrompt,
    score_reward_bench,
    score_reward_bench_2,
)

logger = logging.getLogger(__name__)

NUM_WORST = 50


@dataclass(frozen=True, kw_only=True)
class ScoredPreferences:
    """N prompts with correct and incorrect responses, each also as a pair of the best of both."""

    pairs: ScoredPairs
    sources: list[str]
    subsets: list[str]
    prompts: list[ScoredPrompt]
    rows: list[dict[str, Any]]
    """The original rows."""


def preference_report(preferences: ScoredPreferences) -> dict[str, Any]:
    """Return the pairwise report, the benchmark's own averages, and the rows of the worst pairs."""
    worst = find_worst(preferences.pairs, NUM_WORST)
    return {
        **pairwise_report(preferences.pairs, preferences.sources, preferences.subsets),
        "benchmark": _benchmark(preferences),
        "worst": [preferences.rows[i] for i in worst],
    }


def _benchmark(preferences: ScoredPreferences) -> dict[str, float]:
    """Return the scores of the benchmark that the subsets belong to; empty if unknown."""
    known = {subset for weights in SECTIONS.values() for subset in weights}
    if set(preferences.subsets) <= known:
        right = preferences.pairs.reward_margins > 0
        named = np.array(preferences.subsets, dtype=object)
        return score_reward_bench({s: float(right[named == s].mean()) for s in set(named)})
    if any(len(prompt.rewards) > 2 for prompt in preferences.prompts) and all(preferences.subsets):
        try:
            return score_reward_bench_2(preferences.prompts)
        except InputError as error:  # the rest of the report does not depend on it
            logger.warning("RewardBench 2's own averages are left out: %s", error)
    return {}
