"""Exact means over groups and comparisons, from sums over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.data.cache.group_tokens import TokenCounts
from rm_ray.objectives.losses import Losses

_COMPARED = ("accuracy", "chosen_rewards", "rejected_rewards", "reward_margin", "ties")
_TOKENS = TokenCounts._fields
_COUNTS = ("compared", "groups", "with_loss", *_TOKENS, "flops")


@dataclass
class GroupMetrics:
    """Sums over groups, in float64 on the rewards' device.

    ``sums`` ``[N]`` are the objective's parts; the comparisons' figures, weighted so that each
    group counts 1; the weight of all comparisons; the groups, and those with a loss; the three
    token counts; the FLOPs that the groups need.
    """

    sums: Tensor
    parts: tuple[str, ...] = ("loss",)
    """Names of the objective's parts."""

    @classmethod
    def zero(cls, device: torch.device, parts: Sequence[str] = ("loss",)) -> GroupMetrics:
        """Return sums over no groups."""
        size = len(parts) + len(_COMPARED) + len(_COUNTS)
        return cls(torch.zeros(size, dtype=torch.float64, device=device), tuple(parts))

    def add(self, rewards: Tensor, losses: Losses, labels: Labels, *, tokens: TokenCounts) -> None:
        """Add G groups with ``[R]`` rewards.

        Equal rewards count as half correct. So does a comparison whose label is a tie, which has no
        margin and no better side: its rewards are half chosen, half rejected. A filler counts
        nowhere, even if its loss is not finite.
        """
        counts = labels.group_weights > 0
        by_group = [losses.parts[name].detach().double() for name in self.parts]
        self._add(0, by_group, losses.has_loss & counts)
        better, worse = (
            rewards.detach().double().index_select(0, side)
            for side in (labels.better, labels.worse)
        )
        ties = (better == worse).double()
        is_tie, middle = labels.probability == 0.5, (better + worse) / 2
        better, worse = (torch.where(is_tie, middle, side) for side in (better, worse))
        margins = better - worse
        correct = (margins > 0).double() + (margins == 0).double() / 2
        columns = [correct, better, worse, margins, ties, torch.ones_like(margins)]
        weighted = [column * labels.weight for column in columns]
        self._add(len(self.parts), weighted, counts.index_select(0, labels.group))
        self.sums[self._at("groups")] += counts.sum()
        self.sums[self._at("with_loss")] += (losses.has_loss & counts).sum()
        for name, count in zip(_TOKENS, tokens, strict=True):
            self.sums[self._at(name)] += count

    def _add(self, first: int, columns: Sequence[Tensor], counts: Tensor) -> None:
        rows = torch.stack([*columns])
        counted = torch.where(counts, rows, torch.zeros_like(rows)).sum(dim=1)
        self.sums[first : first + len(counted)] += counted

    def _at(self, name: str) -> int:
        return len(self.parts) + len(_COMPARED) + _COUNTS.index(name)

    def add_flops(self, flops: float) -> None:
        """Add the FLOPs that groups need, forward and backward."""
        self.sums[self._at("flops")] += flops

    def means(self, prefix: str) -> dict[str, float]:
        """Return ``{prefix/name: mean}``, without the figures that nothing was counted for.

        ``ties`` is the share of comparisons with equal rewards.
        """
        sums = self.sums.tolist()
        compared, with_loss = sums[self._at("compared")], sums[self._at("with_loss")]
        names = [*self.parts, *_COMPARED]
        totals = [with_loss] * len(self.parts) + [compared] * len(_COMPARED)
        return {
            f"{prefix}/{name}": sums[i] / total
            for i, (name, total) in enumerate(zip(names, totals, strict=True))
            if total
        }

    @property
    def count(self) -> int:
        """The number of groups."""
        return round(self.sums[self._at("groups")].item())

    @property
    def tokens(self) -> TokenCounts:
        """Token counts over all groups."""
        return TokenCounts(*(round(self.sums[self._at(name)].item()) for name in _TOKENS))

    @property
    def flops(self) -> float:
        """The FLOPs that all groups need, forward and backward."""
        return self.sums[self._at("flops")].item()
