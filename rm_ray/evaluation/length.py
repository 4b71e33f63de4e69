"""How rewards depend on the length of the conversation."""

from __future__ import annotations

import numpy as np

from rm_ray.evaluation.averages import correlation, mean
from rm_ray.evaluation.scored_pairs import ScoredPairs


def describe_length(pairs: ScoredPairs) -> dict[str, float | None]:
    """Return how rewards depend on length, in tokens of the conversation.

    Correlations are Pearson's, None if either side is constant. The shares about longer responses
    exclude pairs of equal length. In accuracies, equal rewards count as half correct. Labelled ties
    have no better side, so only ``reward_with_tokens`` and ``prefers_longer`` include them.
    """
    rewards = np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards])
    tokens = np.concatenate([pairs.chosen_tokens, pairs.rejected_tokens])
    both = np.concatenate([pairs.weights, pairs.weights])
    decided = pairs[~pairs.is_tie]
    difference = _difference(decided)
    is_longer = _difference(pairs) * pairs.reward_margins
    return {
        "reward_with_tokens": correlation(rewards, tokens, both),
        "margin_with_difference": correlation(decided.reward_margins, difference, decided.weights),
        "chosen_is_longer": _share(difference > 0, difference != 0, decided.weights),
        "prefers_longer": _share(is_longer > 0, is_longer != 0, pairs.weights),
        "accuracy_where_chosen_is_longer": _share(decided.credits, difference > 0, decided.weights),
        "accuracy_where_chosen_is_shorter": _share(
            decided.credits, difference < 0, decided.weights
        ),
    }


def _difference(pairs: ScoredPairs) -> np.ndarray:
    """Return how much longer the chosen response is, ``[N]``."""
    difference: np.ndarray = (pairs.chosen_tokens - pairs.rejected_tokens).astype(np.float64)
    return difference


def _share(holds: np.ndarray, among: np.ndarray, weights: np.ndarray) -> float | None:
    return mean(holds[among], weights[among]) if among.any() else None
