"""What an objective returns, and the sums over groups that objectives share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rm_ray.batches.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The losses of G groups: float32, or float64 if the rewards are float64."""

    groups: Tensor
    """``[G]``: each group's loss, all parts together; 0 where it has none."""

    has_loss: Tensor
    """``[G]`` bool: whether the group has a loss. A filler has none."""

    parts: dict[str, Tensor]
    """``[G]`` each: ``loss``, and ``centering`` if it is used. They add up to ``groups``.
    Also ``tie_parameter`` if it is learned, the same for each group, which adds nothing."""


class Objective(Protocol):
    """A pure function from rewards and labels to losses.

    It reads no value from the device and makes no shape depend on one, so a GPU runs it without
    synchronizing. A group's loss and gradient depend on that group alone. A group that counts has
    a loss that is not finite if a reward in it is NaN and the loss uses that reward.
    """

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of its losses."""
        ...

    def __call__(self, rewards: Tensor, labels: Labels) -> Losses:
        """Return the losses of G groups from their ``[R]`` rewards."""
        ...


def prepare_rewards(rewards: Tensor, labels: Labels) -> Tensor:
    """Return ``[R]`` rewards in float32 (float64 stays), with 0 in place of the fillers'.

    ``rewards`` may have more elements, which are no rewards.

    A filler's reward may be infinite or NaN; here neither it nor its gradient goes any further.
    """
    rewards = rewards[: len(labels.response_group)]
    wide = rewards if rewards.dtype == torch.float64 else rewards.float()
    counts = labels.group_weights.index_select(0, labels.response_group) > 0
    return torch.where(counts, wide, 0)


def comparisons_count(labels: Labels) -> Tensor:
    """Return ``[C]`` bool: whether a comparison has a weight and is not a filler's."""
    counts = labels.group_weights.index_select(0, labels.group) > 0
    return counts & (labels.weight > 0)


def sum_by_group(values: Tensor, groups: Tensor, labels: Labels) -> Tensor:
    """Return ``[G]`` sums of values whose groups are ``groups``, of the same length."""
    zeros = values.new_zeros(labels.group_weights.shape)
    return zeros.index_add(0, groups, values)
