"""A pull of each group's rewards towards 0, which comparisons alone leave open."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.objectives.losses import Losses, Objective, prepare_rewards, sum_by_group


@dataclass(frozen=True, kw_only=True)
class Centered:
    """An objective, plus a coefficient times the squared sum of a pair's rewards.

    Source: arXiv:2312.09244, eq. 2. For K responses it is (2 mean)^2, the same at K = 2; like the
    pair's, it moves all rewards of a group together and leaves their differences alone. A group
    without a loss is not centered either.
    """

    objective: Objective
    coefficient: float

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of its losses."""
        return (*self.objective.parts, "centering")

    def __call__(self, rewards: Tensor, labels: Labels) -> Losses:
        """Return the losses of G groups from their ``[R]`` rewards."""
        losses = self.objective(rewards, labels)
        rewards = prepare_rewards(rewards, labels)
        num_responses = sum_by_group(torch.ones_like(rewards), labels.response_group, labels)
        mean = sum_by_group(rewards, labels.response_group, labels) / num_responses.clamp(min=1)
        centering = torch.where(losses.has_loss, self.coefficient * (2 * mean).square(), 0)
        return Losses(
            groups=losses.groups + centering,
            has_loss=losses.has_loss,
            parts={**losses.parts, "centering": centering},
        )
