"""Rewards of groups -> the report of an evaluation: all figures, by source and by subset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rm_ray.evaluation.calibration import calibrate, calibration_error
from rm_ray.evaluation.length import describe_length
from rm_ray.evaluation.lists import describe_lists, describe_scores
from rm_ray.evaluation.pairwise import pairwise_metrics
from rm_ray.evaluation.reward_statistics import describe_rewards
from rm_ray.evaluation.scored_groups import ScoredGroups


def group_report(
    groups: ScoredGroups,
    sources: Sequence[str],
    subsets: Sequence[str],
    *,
    models_ties: bool = False,
    raw: ScoredGroups | None = None,
) -> dict[str, Any]:
    """Return the full report: overall, by source, by subset, calibration and length.

    ``sources`` and ``subsets`` name those of each group, ``[G]``; no subsets at all may be given.
    The calibration of a model whose objective ``models_ties`` leaves out labelled ties. ``raw`` has
    the same groups with raw rewards, if those of ``groups`` are standardized.
    """
    pairs = groups.pairs
    raw_pairs = pairs if raw is None else raw.pairs
    bins = calibrate(raw_pairs[~pairs.is_tie] if models_ties else raw_pairs)
    return {
        "overall": group_metrics(groups, raw),
        "rewards": describe_rewards(groups.rewards),
        "by_source": group_metrics_by(groups, sources, raw),
        "by_subset": group_metrics_by(groups, subsets, raw) if any(subsets) else {},
        "calibration": bins,
        "calibration_error": calibration_error(bins),
        "length": describe_length(pairs),
    }


def group_metrics(groups: ScoredGroups, raw: ScoredGroups | None = None) -> dict[str, Any]:
    """Return the ``pairwise_metrics``, with those of ``lists`` and of ``scores`` if there are any.

    Each group that has comparisons weighs the same. ``raw`` is as for ``group_report``.
    """
    others = {"lists": describe_lists(groups), "scores": describe_scores(groups)}
    present = {name: figures for name, figures in others.items() if figures is not None}
    return {**pairwise_metrics(groups.pairs, None if raw is None else raw.pairs), **present}


def group_metrics_by(
    groups: ScoredGroups, labels: Sequence[str], raw: ScoredGroups | None = None
) -> dict[str, dict[str, Any]]:
    """Return the ``group_metrics`` of each label's groups."""
    named = np.asarray(labels, dtype=object)
    return {
        name: group_metrics(groups[named == name], None if raw is None else raw[named == name])
        for name in sorted(set(labels))
    }


def find_worst(groups: ScoredGroups, count: int) -> np.ndarray:
    """Return the groups with the most clearly wrong comparisons, worst first: up to ``count``.

    Labelled ties are never wrong.
    """
    decided = groups.probabilities > 0.5
    margins = groups.pairs.reward_margins[decided]
    least = np.full(groups.num_groups, np.inf, dtype=margins.dtype)
    np.minimum.at(least, groups.group[decided], margins)
    order = np.argsort(least, kind="stable")
    return order[: min(count, int((least < 0).sum()))]
