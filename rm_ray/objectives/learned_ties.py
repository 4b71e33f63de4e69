"""Bradley-Terry with a tie parameter that the model learns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.config.sections.objective import ObjectiveConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.tie_parameter import TieParameter
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.objectives.losses import Losses
from rm_ray.objectives.outcomes import LOG_2, DavidsonOutcomes, RaoKupperOutcomes

START = {"davidson": 1.0, "rao_kupper": LOG_2}
"""The parameter, or what it is before the first step, by the setting ``objective.ties``."""


def build_tie_parameter(config: ObjectiveConfig, optimizer: OptimizerConfig) -> TieParameter | None:
    """Return the parameter that the model learns; None if it is fixed or not used."""
    if config.tie_parameter != "learned":
        return None
    return TieParameter(START[config.ties], learning_rate=optimizer.learning_rate)


@dataclass(frozen=True, kw_only=True)
class LearnedTies:
    """The losses of comparisons whose ties follow a parameter that is learned with the rewards."""

    ties: str
    """'davidson' or 'rao_kupper'."""
    bradley_terry: BradleyTerry
    parts: ClassVar[tuple[str, ...]] = ("loss", "tie_parameter")

    def __call__(self, rewards: Tensor, labels: Labels) -> Losses:
        """Return the losses of G groups.

        ``rewards`` ``[R + 1]`` end with the logarithm of the parameter, whose value each group
        reports as a part of its own that adds nothing to the loss.
        """
        parameter = rewards[len(labels.response_group)].exp()
        is_davidson = self.ties == "davidson"
        outcomes = DavidsonOutcomes(parameter) if is_davidson else RaoKupperOutcomes(parameter)
        losses = replace(self.bradley_terry, outcomes=outcomes)(rewards, labels)
        value = parameter.detach().expand(losses.groups.shape)
        return replace(losses, parts={**losses.parts, "tie_parameter": value})
