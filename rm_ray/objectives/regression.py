"""Squared error of rewards that predict scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.objectives.losses import Losses, prepare_rewards, sum_by_group


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Mean squared error over each group's responses with a score (arXiv:2410.01257).

    Comparisons make no difference. The scores are used as they are: rewards learn their scale.
    """

    parts: ClassVar[tuple[str, ...]] = ("loss",)

    def __call__(self, rewards: Tensor, labels: Labels) -> Losses:
        """Return the losses of G groups from their ``[R]`` rewards."""
        rewards = prepare_rewards(rewards, labels)
        counts = labels.group_weights.index_select(0, labels.response_group) > 0
        scored = counts & ~labels.scores.isnan()
        errors = torch.where(scored, rewards - torch.where(scored, labels.scores, 0), 0)
        num_scored = sum_by_group(scored.to(errors.dtype), labels.response_group, labels)
        total = sum_by_group(errors.square(), labels.response_group, labels)
        groups = total / num_scored.clamp(min=1)
        return Losses(groups=groups, has_loss=num_scored > 0, parts={"loss": groups})
