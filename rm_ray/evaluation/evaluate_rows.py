"""Scored rows -> how good the model is: figures, the worst pairs, benchmarks' own averages."""

from __future__ import annotations

import logging
from collections import defaultdict
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
from rm_ray.scoring.batch import ScoredRows
from rm_ray.scoring.conversations import Conversations, parse_conversations

logger = logging.getLogger(__name__)

NUM_WORST = 50


@dataclass(frozen=True, kw_only=True)
class ScoredPreferences:
    """N prompts with right and wrong responses, as pairs of the best of each, and where from."""

    pairs: ScoredPairs
    sources: list[str]
    subsets: list[str]
    prompts: list[ScoredPrompt]
    rows: list[dict[str, Any]]


def judge(scored: ScoredRows) -> ScoredPreferences:
    """Read the scored rows that say which response is right.

    Of several right or wrong responses the best right one stands against the best wrong one.

    Raises:
        InputError: none does.
    """
    columns: dict[str, list[float]] = defaultdict(list)
    sources, subsets, prompts, rows = [], [], [], []
    for origin, row in scored:
        what = parse_conversations(row, origin, scored.rules)
        if not 0 < what.num_correct < len(what.messages):
            continue
        rewards, tokens = _rewards(row, what)
        right = int(np.argmax(rewards[: what.num_correct]))
        wrong = what.num_correct + int(np.argmax(rewards[what.num_correct :]))
        columns["chosen_rewards"].append(rewards[right])
        columns["rejected_rewards"].append(rewards[wrong])
        columns["chosen_tokens"].append(tokens[right])
        columns["rejected_tokens"].append(tokens[wrong])
        columns["margins"].append(what.margin)
        sources.append(what.source)
        subsets.append(what.subset)
        prompts.append(
            ScoredPrompt(
                subset=what.subset, rewards=rewards, num_correct=what.num_correct, id=what.id
            )
        )
        rows.append(row)
    if not rows:
        raise InputError("no row says which response is the better one, so there is no accuracy")
    arrays = {name: np.array(values) for name, values in columns.items()}
    return ScoredPreferences(
        pairs=ScoredPairs(**arrays), sources=sources, subsets=subsets, prompts=prompts, rows=rows
    )


def _rewards(row: dict[str, Any], what: Conversations) -> tuple[list[float], list[int]]:
    if what.form == "responses":
        return row["rewards"], row["num_tokens"]
    return (
        [row["chosen_reward"], row["rejected_reward"]],
        [row["chosen_tokens"], row["rejected_tokens"]],
    )


def evaluate_rows(preferences: ScoredPreferences, scored: ScoredRows) -> dict[str, Any]:
    """Return all figures of the scored rows, for ``report.json``."""
    worst = find_worst(preferences.pairs, NUM_WORST)
    return {
        "rows_scored": scored.num_scored,
        "rows_refused": scored.refused,
        "readings": [reading.to_json() for reading in scored.readings],
        **pairwise_report(preferences.pairs, preferences.sources, preferences.subsets),
        "benchmark": _benchmark(preferences),
        "worst": [preferences.rows[i] for i in worst],
    }


def _benchmark(preferences: ScoredPreferences) -> dict[str, float]:
    """Return the scores of the benchmark that the subsets are of; nothing where they are not."""
    known = {subset for weights in SECTIONS.values() for subset in weights}
    if set(preferences.subsets) <= known:
        right = preferences.pairs.reward_margins > 0
        named = np.array(preferences.subsets, dtype=object)
        return score_reward_bench({s: float(right[named == s].mean()) for s in set(named)})
    if any(len(prompt.rewards) > 2 for prompt in preferences.prompts) and all(preferences.subsets):
        try:
            return score_reward_bench_2(preferences.prompts)
        except InputError as error:  # the other figures do not depend on it
            logger.warning("RewardBench 2's own averages are left out: %s", error)
    return {}
