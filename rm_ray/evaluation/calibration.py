"""Predicted probabilities beside what the labels say, in bins of the reward margin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rm_ray.evaluation.averages import mean
from rm_ray.evaluation.intervals import clustered_interval
from rm_ray.evaluation.scored_pairs import ScoredPairs


def observe(pairs: ScoredPairs) -> np.ndarray:
    """Return the label's probability that the response with the higher reward is better, ``[N]``.

    Without soft labels or ties this is 1 where the model is right and 0 where it is wrong. It is
    0.5 where the rewards are equal.
    """
    margins, probabilities = pairs.reward_margins, pairs.probabilities
    reversed_ones = np.where(margins < 0, 1 - probabilities, 0.5)
    return np.where(margins > 0, probabilities, reversed_ones)


def predict(pairs: ScoredPairs) -> np.ndarray:
    """Return the Bradley-Terry probability that the higher reward's response is better, ``[N]``."""
    predicted: np.ndarray = 1 / (1 + np.exp(-np.abs(pairs.reward_margins)))
    return predicted


def calibrate(pairs: ScoredPairs, *, num_bins: int = 10) -> list[dict[str, float]]:
    """Return predicted and observed accuracy in equal-sized bins, ordered by ``|margin|``.

    The prediction, ``sigmoid(|margin|)``, rises with the margin, so that bins of the margin are
    bins of the predicted probability. ``accuracy`` is the mean of ``observe``, in which a tied or
    soft label counts with its probability: a tie is half a win, as Bradley-Terry has it. A model
    of ties gives them a probability of their own. Davidson's predicts ``sigmoid(margin)`` among the
    other comparisons, and Rao and Kupper's something near it, so leave ties out for both.
    """
    order = np.argsort(np.abs(pairs.reward_margins), kind="stable")
    parts = np.array_split(order, min(num_bins, len(order))) if len(order) else []
    return [_describe(pairs[members]) for members in parts]


def _describe(pairs: ScoredPairs) -> dict[str, float]:
    sizes, observed = np.abs(pairs.reward_margins), observe(pairs)
    weights = pairs.weights.astype(np.float64)
    low, high = clustered_interval(observed, weights, pairs.groups)
    return {
        "pairs": len(pairs),
        "weight": float(weights.sum()),
        "least_margin": float(sizes.min()),
        "most_margin": float(sizes.max()),
        "predicted": mean(predict(pairs), weights),
        "accuracy": float((weights * observed).sum() / weights.sum()),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def calibration_error(bins: Sequence[dict[str, float]]) -> float | None:
    """Return the expected calibration error over the bins (arXiv:1706.04599, p. 2).

    A bin counts by the weight of its comparisons. None without bins.
    """
    total = sum(each["weight"] for each in bins)
    gaps = sum(each["weight"] * abs(each["predicted"] - each["accuracy"]) for each in bins)
    return gaps / total if bins else None
