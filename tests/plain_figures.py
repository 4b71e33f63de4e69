"""The figures of plain pairs by the plainest formulas, which lists and weights must not change.

N pairs, each of weight 1, with a sure label: no formula here knows of anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_ray.evaluation.scored_pairs import ScoredPairs

Z95 = 1.959964


def wilson_interval(successes: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson, 1927); (0, 1) if ``count`` is 0."""
    if not count:
        return 0.0, 1.0
    share, z2 = successes / count, Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count)
    half *= np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def plain_metrics(pairs: ScoredPairs) -> dict[str, float]:
    """Return means over the pairs; a tie counts as half correct."""
    margins = pairs.chosen_rewards - pairs.rejected_rewards
    rewards = np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards])
    right = float((margins > 0).sum() + 0.5 * (margins == 0).sum())
    low, high = wilson_interval(right, len(pairs))
    return {
        "pairs": len(pairs),
        "accuracy": right / len(pairs),
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": float((margins == 0).mean()),
        "bradley_terry_loss": float(np.logaddexp(0.0, -(margins - pairs.margins)).mean()),
        "chosen_rewards": float(pairs.chosen_rewards.mean()),
        "rejected_rewards": float(pairs.rejected_rewards.mean()),
        "reward_margin": float(margins.mean()),
        "reward_std": float(rewards.std()),
    }


def plain_metrics_by(pairs: ScoredPairs, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the ``plain_metrics`` of each label's pairs."""
    named = np.asarray(labels, dtype=object)
    return {name: plain_metrics(pairs[named == name]) for name in sorted(set(labels))}


def calibrate(pairs: ScoredPairs, *, num_bins: int = 10) -> list[dict[str, float]]:
    """Return predicted and observed accuracy in equal-sized bins, ordered by ``|margin|``.

    The prediction is the Bradley-Terry probability that the response with the higher reward is
    better, ``sigmoid(|margin|)``.
    """
    margins = pairs.chosen_rewards - pairs.rejected_rewards
    order = np.argsort(np.abs(margins), kind="stable")
    bins = []
    for members in np.array_split(order, min(num_bins, len(order))):
        sizes, right = np.abs(margins[members]), margins[members] > 0
        ties = margins[members] == 0
        share = float((right + 0.5 * ties).sum())
        low, high = wilson_interval(share, len(members))
        bins.append(
            {
                "pairs": len(members),
                "least_margin": float(sizes.min()),
                "most_margin": float(sizes.max()),
                "predicted": float((1 / (1 + np.exp(-sizes))).mean()),
                "accuracy": share / len(members),
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    return bins


def calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """Return the expected calibration error over the bins (arXiv:1706.04599, p. 2)."""
    total = sum(each["pairs"] for each in bins)
    gaps = sum(each["pairs"] * abs(each["predicted"] - each["accuracy"]) for each in bins)
    return gaps / total


def describe_length(pairs: ScoredPairs) -> dict[str, float | None]:
    """Return how rewards depend on length, in tokens of the conversation.

    Correlations are Pearson's, None if either side is constant. The shares about longer responses
    exclude pairs of equal length. In accuracies, a tie counts as half correct.
    """
    difference = (pairs.chosen_tokens - pairs.rejected_tokens).astype(np.float64)
    margins = pairs.chosen_rewards - pairs.rejected_rewards
    is_right = np.heaviside(margins, 0.5)
    rewards = np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards])
    tokens = np.concatenate([pairs.chosen_tokens, pairs.rejected_tokens])
    return {
        "reward_with_tokens": correlation(rewards, tokens),
        "margin_with_difference": correlation(margins, difference),
        "chosen_is_longer": _share(difference > 0, difference != 0),
        "prefers_longer": _share(margins * difference > 0, (difference != 0) & (margins != 0)),
        "accuracy_where_chosen_is_longer": _share(is_right, difference > 0),
        "accuracy_where_chosen_is_shorter": _share(is_right, difference < 0),
    }


def correlation(left: np.ndarray, right: np.ndarray) -> float | None:
    """Return Pearson's correlation; None if either side is constant."""
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _share(holds: np.ndarray, among: np.ndarray) -> float | None:
    return float(holds[among].mean()) if among.any() else None


def find_worst(pairs: ScoredPairs, count: int) -> np.ndarray:
    """Return the most clearly wrong pairs, worst first: up to ``count`` indices."""
    order = np.argsort((pairs.chosen_rewards - pairs.rejected_rewards), kind="stable")
    return order[: min(count, int(((pairs.chosen_rewards - pairs.rejected_rewards) < 0).sum()))]


def plain_report(
    pairs: ScoredPairs, sources: Sequence[str], subsets: Sequence[str]
) -> dict[str, Any]:
    """Return the full report: overall, by source, by subset, calibration and length."""
    bins = calibrate(pairs)
    return {
        "overall": plain_metrics(pairs),
        "by_source": plain_metrics_by(pairs, sources),
        "by_subset": plain_metrics_by(pairs, subsets) if any(subsets) else {},
        "calibration": bins,
        "calibration_error": calibration_error(bins),
        "length": describe_length(pairs),
    }
