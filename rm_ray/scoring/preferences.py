"""Scored rows -> their preferences and rewards, for the evaluation."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from rm_ray.errors import InputError
from rm_ray.evaluation.pairwise import ScoredPairs
from rm_ray.evaluation.preference_report import ScoredPreferences, preference_report
from rm_ray.evaluation.reward_bench import ScoredPrompt
from rm_ray.scoring.conversations import Conversations, parse_conversations
from rm_ray.scoring.output import ScoredRows


def read_preferences(scored: ScoredRows) -> ScoredPreferences:
    """Return the preferences of the rows that tell right responses from wrong ones.

    With several responses, the highest-scoring right one is compared with the highest-scoring wrong
    one.

    Raises:
        InputError: no row tells right responses from wrong ones.
    """
    columns: dict[str, list[float]] = defaultdict(list)
    sources, subsets, prompts, rows = [], [], [], []
    for origin, row in scored:
        parsed = parse_conversations(row, origin, scored.rules)
        if not 0 < parsed.num_correct < len(parsed.messages):
            continue
        rewards, tokens = _rewards(row, parsed)
        right = int(np.argmax(rewards[: parsed.num_correct]))
        wrong = parsed.num_correct + int(np.argmax(rewards[parsed.num_correct :]))
        columns["chosen_rewards"].append(rewards[right])
        columns["rejected_rewards"].append(rewards[wrong])
        columns["chosen_tokens"].append(tokens[right])
        columns["rejected_tokens"].append(tokens[wrong])
        columns["margins"].append(parsed.margin)
        sources.append(parsed.source)
        subsets.append(parsed.subset)
        prompts.append(
            ScoredPrompt(
                subset=parsed.subset, rewards=rewards, num_correct=parsed.num_correct, id=parsed.id
            )
        )
        rows.append(row)
    if not rows:
        raise InputError("no row tells which response is better, so there is no accuracy to report")
    arrays = {name: np.array(values) for name, values in columns.items()}
    return ScoredPreferences(
        pairs=ScoredPairs(**arrays), sources=sources, subsets=subsets, prompts=prompts, rows=rows
    )


def _rewards(row: dict[str, Any], parsed: Conversations) -> tuple[list[float], list[int]]:
    if parsed.form == "responses":
        return row["rewards"], row["num_tokens"]
    return (
        [row["chosen_reward"], row["rejected_reward"]],
        [row["chosen_tokens"], row["rejected_tokens"]],
    )


def evaluation_report(preferences: ScoredPreferences, scored: ScoredRows) -> dict[str, Any]:
    """Return ``report.json``: how the rows were read, and all metrics of their preferences."""
    return {
        "rows_scored": scored.num_scored,
        "rows_refused": scored.refused,
        "readings": [reading.to_json() for reading in scored.readings],
        **preference_report(preferences),
    }
