"""The objective that the settings ask for."""

from __future__ import annotations

from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.centering import Centered
from rm_ray.objectives.learned_ties import START, LearnedTies
from rm_ray.objectives.losses import Objective
from rm_ray.objectives.outcomes import (
    BradleyTerryOutcomes,
    DavidsonOutcomes,
    Outcomes,
    RaoKupperOutcomes,
)
from rm_ray.objectives.plackett_luce import PlackettLuce
from rm_ray.objectives.regression import Regression


def build_objective(config: ObjectiveConfig) -> Objective:
    """Return the objective: a pure function of rewards and labels."""
    objective = _build_loss(config)
    if config.centering:
        return Centered(objective=objective, coefficient=config.centering)
    return objective


def _build_loss(config: ObjectiveConfig) -> Objective:
    match config.loss:
        case "plackett_luce":
            return PlackettLuce()
        case "regression":
            return Regression()
        case "bradley_terry":
            bradley_terry = BradleyTerry(
                outcomes=_build_outcomes(config),
                margin=config.margin_use,
                drop_ties=config.ties == "drop",
                label_smoothing=config.label_smoothing,
                noise=config.noise,
            )
            if config.tie_parameter == "learned":
                return LearnedTies(ties=config.ties, bradley_terry=bradley_terry)
            return bradley_terry


def _build_outcomes(config: ObjectiveConfig) -> Outcomes:
    parameter = config.tie_parameter
    if parameter is None or parameter == "learned":
        parameter = START.get(config.ties, 1.0)
    match config.ties:
        case "davidson":
            return DavidsonOutcomes(parameter)
        case "rao_kupper":
            return RaoKupperOutcomes(parameter)
        case "half" | "drop":
            return BradleyTerryOutcomes()
