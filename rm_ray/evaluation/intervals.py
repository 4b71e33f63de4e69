"""95% intervals of shares: of independent values, and of values that depend on their group."""

from __future__ import annotations

import math

import numpy as np

Z95 = 1.959964
"""Standard normal quantile of a two-sided interval of 95%."""


def wilson_interval(successes: float, count: float) -> tuple[float, float]:
    """Return the 95% interval of a share (Wilson, 1927); (0, 1) if ``count`` is 0."""
    return _score_interval(successes / count, count) if count else (0.0, 1.0)


def clustered_interval(
    values: np.ndarray, weights: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """Return the 95% interval of a weighted mean of values in [0, 1] that depend on their group.

    It is Wilson's with the effective number of values, ``share (1 - share) / variance``, where the
    variance is that between groups (Korn and Graubard, 1998, Survey Methodology 24, p. 193-201).
    The number is kept between those of values that agree within their groups and of independent
    values (Kish, 1965), so that N values of weight 1, each in a group of its own, get Wilson's
    interval for N.

    Shapes: all arguments are ``[N]``; ``groups`` holds any integers.
    """
    if not len(values):
        return 0.0, 1.0
    group = np.unique(groups, return_inverse=True)[1]
    weights = weights.astype(np.float64)
    total = weights.sum()
    share = float((weights * values).sum() / total)
    by_group = np.bincount(group, weights)
    excess = np.bincount(group, weights * (values - share))
    variance = _between(len(by_group)) * float((excess**2).sum()) / total**2
    least, most = _effective_number(by_group), _effective_number(weights)
    return _score_interval(share, _number(share, variance, least, most))


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% interval of the mean of N independent values in [0, 1], one for each group.

    It is Wilson's with the effective number of values, ``share (1 - share) / variance``, which has
    no upper limit: values between 0 and 1 vary less than successes and failures do. As their
    variance is an estimate, Student's t with N - 1 degrees of freedom replaces the normal quantile
    (Korn and Graubard, 1998). Values that hardly differ are no proof that others would not: the
    interval reaches at least as far as the mean could move with one more value. One value says
    nothing about others, so its interval is (0, 1), as is that of none.
    """
    count = len(values)
    if count < 2:
        return 0.0, 1.0
    share = float(values.mean())
    variance = _between(count) * float(((values - share) ** 2).sum()) / count**2
    spread = share * (1 - share)  # 0 also where one of many values is 1e-16 below 1
    number = spread / variance if variance > 0 and spread > 0 else count
    low, high = _score_interval(share, number, t95(count - 1))
    total = share * count
    return min(low, total / (count + 1)), max(high, (total + 1) / (count + 1))


def t95(degrees: int) -> float:
    """Return Student's t quantile of a two-sided interval of 95%; off by 0.13% at most.

    From three degrees of freedom on it is an expansion about the normal quantile (Abramowitz and
    Stegun, 1964, 26.7.5).
    """
    if degrees == 1:
        return math.tan(0.95 * math.pi / 2)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**i for i, term in enumerate(terms, start=1))


def _score_interval(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    z2 = z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count)
    half *= np.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _between(num_groups: int) -> float:
    """Return the correction of a variance between groups for their number."""
    return num_groups / (num_groups - 1) if num_groups > 1 else 0.0


def _effective_number(weights: np.ndarray) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum())


def _number(share: float, variance: float, least: float, most: float) -> float:
    """Return the effective number, between its limits; the least if nothing varies."""
    if variance <= 0:
        return least
    return float(np.clip(share * (1 - share) / variance, least, most))
