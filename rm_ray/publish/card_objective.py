"""What a model card says of the objective: how the model was trained, and what its rewards mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_ray.config.sections.objective import ObjectiveConfig

TAGS = {
    "bradley_terry": "bradley-terry",
    "plackett_luce": "plackett-luce",
    "regression": "regression",
}
"""The Hub's tag of each loss."""


def read_objective(config: Mapping[str, Any]) -> ObjectiveConfig:
    """Return the objective of a run's settings; of a run before there was a choice, the default."""
    return ObjectiveConfig(**config.get("objective", {}))


def describe_training(objective: ObjectiveConfig, unit: str) -> str:
    """Return what the model was trained with; ``unit`` is 'pairs' or 'groups'."""
    of_what = "pairs of responses" if unit == "pairs" else "comparisons within lists of responses"
    match objective.loss:
        case "regression":
            return (
                "Trained to predict the scores of responses, by their squared error "
                "([arXiv:2410.01257](https://arxiv.org/abs/2410.01257)),"
            )
        case "plackett_luce":
            of_what = "pairs of responses" if unit == "pairs" else "rankings of responses"
            return f"Trained with the Plackett-Luce loss (Plackett, 1975; Luce, 1959) on {of_what}"
        case "bradley_terry":
            name = _TIE_MODELS.get(objective.ties, "the Bradley-Terry loss")
            return (
                f"Trained with {name} on {of_what} "
                "([arXiv:2009.01325](https://arxiv.org/abs/2009.01325), p. 6)"
            )


_TIE_MODELS = {
    "davidson": "the Bradley-Terry loss and Davidson's model of ties (1970)",
    "rao_kupper": "the Bradley-Terry loss and Rao and Kupper's model of ties (1967)",
}


def describe_rewards(objective: ObjectiveConfig) -> str:
    """Return what rewards, and the difference of two rewards, mean."""
    if objective.loss == "regression":
        return (
            "A reward predicts the response's score, on the scale of the scores in the training "
            "data. The difference of two rewards is no log-odds of a preference."
        )
    log_odds = "their difference is the log-odds that the first one is preferred"
    means = {
        "davidson": f"{log_odds}, unless the two tie",
        "rao_kupper": "at a difference d the first one is preferred with probability "
        "sigmoid(d - eta), where eta is the tie parameter",
    }.get(objective.ties, log_odds)
    if objective.margin == "scale":
        means += ", where comparisons count by their margin"
    if objective.label_smoothing:
        means += f", with {objective.label_smoothing:g} of the labels taken as wrong"
    return (
        f"Rewards of answers to the same prompt can be compared; {means}. A single reward, or "
        "rewards of different prompts, mean little."
    )
