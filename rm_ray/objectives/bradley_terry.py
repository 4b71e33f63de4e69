"""Likelihood of comparisons: each group's weighted sum over its comparisons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.config.sections.objective import Margin
from rm_ray.objectives.losses import Losses, comparisons_count, prepare_rewards, sum_by_group
from rm_ray.objectives.outcomes import (
    BradleyTerryOutcomes,
    Outcomes,
    outcome_losses,
    smooth,
    undo_noise,
)


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """Negative log-likelihood of each group's comparisons (arXiv:2009.01325, p. 6).

    For K responses that are all compared it is the mean over the C(K, 2) pairs (arXiv:2203.02155,
    eq. 1, p. 8).
    """

    outcomes: Outcomes = field(default_factory=BradleyTerryOutcomes)

    margin: Margin = "add"
    """'add': the lead that a winner should have (arXiv:2307.09288, p. 11); 'scale': what its loss
    is multiplied by (arXiv:2410.01257), so that a comparison without a positive margin has none."""

    drop_ties: bool = False
    """Take tied comparisons out; the others of their group then weigh 1 together."""

    label_smoothing: float = 0.0
    """Probability that a label is wrong."""

    noise: float = 0.0
    """Share of labels that were flipped; at most one of the two is above 0."""

    parts: ClassVar[tuple[str, ...]] = ("loss",)

    def __call__(self, rewards: Tensor, labels: Labels) -> Losses:
        """Return the losses of G groups from their ``[R]`` rewards."""
        rewards = prepare_rewards(rewards, labels)
        lead = rewards.index_select(0, labels.better) - rewards.index_select(0, labels.worse)
        label, margin = labels.probability.to(lead.dtype), labels.margin.to(lead.dtype)
        losses = outcome_losses(
            self.outcomes,
            lead=lead,
            margin=margin if self.margin == "add" else torch.zeros_like(margin),
            label=label,
            target=self._target(label),
        )
        weight = self._weigh(labels).to(lead.dtype)
        weighted = torch.where(weight > 0, weight * losses, 0)
        groups = sum_by_group(weighted, labels.group, labels)
        has_loss = sum_by_group((weight > 0).to(lead.dtype), labels.group, labels) > 0
        return Losses(groups=groups, has_loss=has_loss, parts={"loss": groups})

    def _target(self, label: Tensor) -> Tensor:
        if self.label_smoothing:
            return smooth(label, self.label_smoothing)
        return undo_noise(label, self.noise) if self.noise else label

    def _weigh(self, labels: Labels) -> Tensor:
        """Return ``[C]`` what each comparison's loss is multiplied by, or at most 0 for none."""
        weight = torch.where(comparisons_count(labels), labels.weight, 0)
        if self.drop_ties:
            weight = torch.where(labels.probability == 0.5, 0, weight)
            total = sum_by_group(weight, labels.group, labels).index_select(0, labels.group)
            weight = weight / torch.where(total > 0, total, 1)
        return weight * labels.margin if self.margin == "scale" else weight
