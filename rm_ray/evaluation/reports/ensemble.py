"""Several models' rewards of the same responses: their spread, and what it says of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rm_ray.evaluation.averages import mean
from rm_ray.evaluation.intervals import clustered_interval
from rm_ray.evaluation.scored_pairs import ScoredPairs

NUM_BINS = 5


def spread_over_models(rewards: np.ndarray) -> np.ndarray:
    """Return the sample standard deviation over the models.

    A shift of one model's rewards says nothing of preferences, but would widen the spread: take
    each model's mean reward off first, where rewards and not margins are compared.

    Shapes: M models, N responses or comparisons; ``[M, N]`` to ``[N]``.
    """
    spread: np.ndarray = rewards.std(axis=0, ddof=1)
    return spread


def ensemble_report(members: Mapping[str, ScoredPairs], together: ScoredPairs) -> dict[str, Any]:
    """Return the accuracy of each model and, by the spread of the margin, of the mean reward.

    ``members`` has the models' comparisons by name; ``together`` has the same N comparisons with
    mean rewards. Where the spread is large the models disagree, and a policy that is trained on
    their mean is rewarded for what they do not know (arXiv:2310.02743).
    """
    margins = np.stack([member.reward_margins for member in members.values()])
    spread = spread_over_models(margins)
    order = np.argsort(spread, kind="stable")
    parts = np.array_split(order, min(NUM_BINS, len(order))) if len(order) else []
    return {
        "models": [{"model": name, **_accuracy(member)} for name, member in members.items()],
        "mean": _accuracy(together),
        "by_spread": [
            {
                "pairs": len(part),
                "least_spread": float(spread[part].min()),
                "most_spread": float(spread[part].max()),
                **_accuracy(together[part]),
            }
            for part in parts
        ],
    }


def _accuracy(pairs: ScoredPairs) -> dict[str, float | None]:
    if not len(pairs):
        return {"accuracy": None, "accuracy_low": None, "accuracy_high": None}
    weights = pairs.weights.astype(np.float64)
    low, high = clustered_interval(pairs.credits, weights, pairs.groups)
    found = mean(pairs.credits, weights)
    return {"accuracy": found, "accuracy_low": low, "accuracy_high": high}


def ensemble_table(report: dict[str, Any]) -> str:
    """Return the report as text: the models, their mean, and accuracy by spread."""
    rows = [*report["models"], {"model": "mean of the models", **report["mean"]}]
    lines = [f"accuracy {_shares(figures)}  {figures['model']}" for figures in rows]
    lines += ["", "accuracy of the mean, by the spread of the reward margin over the models:"]
    for part in report["by_spread"]:
        span = f"{part['least_spread']:.3f} to {part['most_spread']:.3f}"
        lines.append(f"  spread {span:>18}: {_shares(part)}  ({part['pairs']:,} pairs)")
    return "\n".join(lines)


def _shares(figures: dict[str, Any]) -> str:
    if figures["accuracy"] is None:
        return "unknown"
    low, high = figures["accuracy_low"], figures["accuracy_high"]
    return f"{figures['accuracy']:.4f} ({low:.4f} to {high:.4f})"
