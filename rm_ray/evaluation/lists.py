"""Rewards of lists -> best of K and Kendall's tau; and their rank correlation with scores.

A list is a group with comparisons among at least three of its responses: among two, both figures
would only repeat the accuracy. A response counts if it is compared with another.
"""

from __future__ import annotations

import numpy as np

from rm_ray.evaluation.averages import correlation
from rm_ray.evaluation.intervals import mean_interval
from rm_ray.evaluation.scored_groups import ScoredGroups

LEAST_RESPONSES = 3


def count_compared(groups: ScoredGroups) -> np.ndarray:
    """Return the number of responses in each group that are compared with another, ``[G]``."""
    return _count(groups, _is_compared(groups))


def is_list(groups: ScoredGroups) -> np.ndarray:
    """Return whether each group is a list in which some response is better, ``[G]``."""
    decided = np.bincount(groups.group, groups.probabilities > 0.5, groups.num_groups) > 0
    lists: np.ndarray = decided & (count_compared(groups) >= LEAST_RESPONSES)
    return lists


def best_of_k(groups: ScoredGroups) -> np.ndarray:
    """Return whether each list's highest reward is that of a best response, ``[G]``.

    A response is a best one if no comparison says that it is worse than another. Of several with
    the highest reward, each counts for its share. NaN for groups that are no lists, or that have no
    best response, since their comparisons form a circle. A reward that is no number is the lowest.
    """
    compared, best = _is_compared(groups), _is_best(groups)
    rewards = np.where(np.isnan(groups.rewards), -np.inf, groups.rewards)
    highest = np.full(groups.num_groups, -np.inf)
    np.maximum.at(highest, groups.response_group[compared], rewards[compared])
    top = compared & (rewards == highest[groups.response_group])
    return _ratio(_count(groups, top & best), _count(groups, top), _has_best(groups))


def best_of_k_chance(groups: ScoredGroups) -> np.ndarray:
    """Return what ``best_of_k`` is on average if the order of the rewards is random, ``[G]``."""
    best = _count(groups, _is_best(groups))
    return _ratio(best, count_compared(groups), _has_best(groups))


def kendall_tau(groups: ScoredGroups) -> np.ndarray:
    """Return Kendall's tau-b between each list's labels and its rewards, ``[G]``.

    Over a list's comparisons it is the concordant minus the discordant ones, divided by the
    geometric mean of those whose labels and those whose rewards are not tied (Kendall, 1945,
    Biometrika 33, p. 239-251). A comparison counts by its weight; responses that are not compared
    do not count, as in a partial order. It is 0 if all rewards are equal, and NaN for groups that
    are no lists.
    """
    label = (groups.probabilities > 0.5).astype(np.float64)
    better, worse = groups.rewards[groups.better], groups.rewards[groups.worse]
    order = (better > worse).astype(np.float64) - (better < worse)
    weights = groups.weights.astype(np.float64)
    agreement, labels, rewards = (
        np.bincount(groups.group, weights * each, groups.num_groups)
        for each in (label * order, label, np.abs(order))
    )
    agreement[rewards == 0], rewards[rewards == 0] = 0.0, 1.0
    tau = _ratio(agreement, np.sqrt(labels * rewards), is_list(groups))
    bounded: np.ndarray = np.clip(tau, -1, 1)
    return bounded


def spearman(groups: ScoredGroups) -> float | None:
    """Return the rank correlation of rewards and labelled scores over all scored responses.

    It compares responses of different prompts too: their order within a prompt is what
    ``kendall_tau`` measures. Equal values share their mean rank (Spearman, 1904). None if either
    side is constant.
    """
    scored = ~np.isnan(groups.scores)
    rewards, scores = _ranks(groups.rewards[scored]), _ranks(groups.scores[scored])
    return correlation(rewards, scores, np.ones(len(scores)))


def describe_lists(groups: ScoredGroups) -> dict[str, float | None] | None:
    """Return the figures of the lists with 95% intervals, means over lists; None without lists."""
    taus, best = kendall_tau(groups), best_of_k(groups)
    taus, best = taus[~np.isnan(taus)], best[~np.isnan(best)]
    if not len(taus):
        return None
    low, high = mean_interval((taus + 1) / 2)
    figures: dict[str, float | None] = {
        "lists": len(taus),
        "kendall_tau": float(taus.mean()),
        "kendall_tau_low": 2 * low - 1,
        "kendall_tau_high": 2 * high - 1,
    }
    low, high = mean_interval(best)
    chance = best_of_k_chance(groups)
    return figures | (
        {
            "best_of_k": float(best.mean()),
            "best_of_k_low": low,
            "best_of_k_high": high,
            "best_of_k_chance": float(chance[~np.isnan(chance)].mean()),
        }
        if len(best)
        else dict.fromkeys(("best_of_k", "best_of_k_low", "best_of_k_high", "best_of_k_chance"))
    )


def describe_scores(groups: ScoredGroups) -> dict[str, float | None] | None:
    """Return the figures of the responses with a labelled score; None if there are none."""
    count = int((~np.isnan(groups.scores)).sum())
    return {"responses": count, "spearman": spearman(groups)} if count else None


def list_metrics(groups: ScoredGroups, prefix: str) -> dict[str, float]:
    """Return ``{prefix/best_of_k, prefix/kendall_tau}``, those that some group has."""
    found = describe_lists(groups) or {}
    values = {name: found.get(name) for name in ("best_of_k", "kendall_tau")}
    return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}


def _is_compared(groups: ScoredGroups) -> np.ndarray:
    compared = np.zeros(len(groups.rewards), dtype=bool)
    compared[groups.better] = compared[groups.worse] = True
    return compared


def _is_best(groups: ScoredGroups) -> np.ndarray:
    best = _is_compared(groups)
    best[groups.worse[groups.probabilities > 0.5]] = False
    return best


def _has_best(groups: ScoredGroups) -> np.ndarray:
    has_best: np.ndarray = is_list(groups) & (_count(groups, _is_best(groups)) > 0)
    return has_best


def _count(groups: ScoredGroups, responses: np.ndarray) -> np.ndarray:
    """Return how many of the responses each group has, ``[G]``."""
    return np.bincount(groups.response_group[responses], minlength=groups.num_groups)


def _ratio(part: np.ndarray, whole: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the ratios, NaN where not ``where``."""
    ratios = np.full(len(where), np.nan)
    ratios[where] = part[where] / whole[where]
    return ratios


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, the mean one where several are equal."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[number]
    return ranks
