"""Weighted means, deviations and correlations; with weights of 1 the plain ones, bit for bit."""

from __future__ import annotations

import numpy as np


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean. Both are ``[N]``, N > 0."""
    if _is_plain(weights):
        return float(values.mean())
    return float(np.average(values.astype(np.float64), weights=weights))


def standard_deviation(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted standard deviation about the weighted mean. Both are ``[N]``, N > 0."""
    if _is_plain(weights):
        return float(values.std())
    centred = values.astype(np.float64) - mean(values, weights)
    return float(np.sqrt(np.average(centred**2, weights=weights)))


def correlation(left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float | None:
    """Return Pearson's correlation, weighted; None if either side is constant. All are ``[N]``."""
    if len(left) < 2 or left.std() == 0 or right.std() == 0:
        return None
    if _is_plain(weights):
        return float(np.corrcoef(left, right)[0, 1])
    one, other = (side.astype(np.float64) - mean(side, weights) for side in (left, right))
    scale = np.sqrt(np.average(one**2, weights=weights) * np.average(other**2, weights=weights))
    return float(np.clip(np.average(one * other, weights=weights) / scale, -1, 1))


def _is_plain(weights: np.ndarray) -> bool:
    return bool((weights == 1).all())
