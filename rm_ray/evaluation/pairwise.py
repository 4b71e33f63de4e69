"""Rewards of comparisons -> accuracy with intervals, loss and mean rewards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rm_ray.evaluation.averages import mean, standard_deviation
from rm_ray.evaluation.intervals import clustered_interval
from rm_ray.evaluation.scored_pairs import ScoredPairs


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The label of each of N groups, such as its source."""

    names: tuple[str, ...]
    codes: np.ndarray
    """``[N]`` positions in ``names``."""

    def of(self, groups: np.ndarray) -> list[str]:
        """Return the label names of the given groups."""
        return [self.names[code] for code in self.codes[groups]]


def pairwise_metrics(pairs: ScoredPairs, raw: ScoredPairs | None = None) -> dict[str, float | None]:
    """Return means over the comparisons, by their weights; None if there are none.

    Equal rewards count as half correct, and so does a labelled tie, whatever its rewards. A tie has
    no chosen side: its two rewards count half as chosen and half as rejected, and its margin as 0.
    ``ties`` is the share with equal rewards, ``labelled_ties`` that of labelled ties.
    ``bradley_terry_loss`` is the same whatever objective a model was trained with, and that of the
    rewards of ``raw`` if those of ``pairs`` are standardized. The intervals take a group's
    comparisons as dependent.
    """
    if not len(pairs):
        return {"pairs": 0, **dict.fromkeys(_MEANS)}
    weights, margins, tie = pairs.weights.astype(np.float64), pairs.reward_margins, pairs.is_tie
    middle = (pairs.chosen_rewards + pairs.rejected_rewards) / 2
    credits = pairs.credits
    low, high = clustered_interval(credits, weights, pairs.groups)
    rewards = np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards])
    means = {
        "accuracy": float((weights * credits).sum() / weights.sum()),
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": mean(margins == 0, weights),
        "labelled_ties": mean(tie, weights),
        "bradley_terry_loss": mean(bradley_terry_losses(pairs if raw is None else raw), weights),
        "chosen_rewards": mean(np.where(tie, middle, pairs.chosen_rewards), weights),
        "rejected_rewards": mean(np.where(tie, middle, pairs.rejected_rewards), weights),
        "reward_margin": mean(np.where(tie, 0, margins), weights),
        "reward_std": standard_deviation(rewards, np.concatenate([weights, weights])),
    }
    assert tuple(means) == _MEANS
    return {"pairs": len(pairs), **means}


_MEANS = (
    "accuracy", "accuracy_low", "accuracy_high", "ties", "labelled_ties", "bradley_terry_loss",
    "chosen_rewards", "rejected_rewards", "reward_margin", "reward_std",
)  # fmt: skip


def bradley_terry_losses(pairs: ScoredPairs) -> np.ndarray:
    """Return each comparison's loss, ``[N]``: the cross-entropy of its label's probability.

    That is ``-p log sigmoid(d) - (1 - p) log sigmoid(-d)`` for the difference ``d`` of the rewards
    (arXiv:2009.01325, p. 6, where p is 1). A required margin is taken off ``d`` where the label is
    sure. A tie or a soft label says by itself how far apart the rewards should be.
    """
    margins, sure = pairs.reward_margins, pairs.probabilities == 1
    required = np.where(sure, pairs.margins, np.zeros_like(pairs.margins))
    difference = margins - required
    wins, losses = np.logaddexp(0.0, -difference), np.logaddexp(0.0, difference)
    probabilities = pairs.probabilities.astype(wins.dtype)
    mixed: np.ndarray = np.where(sure, wins, probabilities * wins + (1 - probabilities) * losses)
    return mixed
