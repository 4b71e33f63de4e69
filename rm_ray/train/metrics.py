"""Exact means over pairs, from sums and a count over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rm_ray.data.cache.pair_tokens import TokenCounts

_SUMS = ("loss", "accuracy", "chosen_rewards", "rejected_rewards", "reward_margin", "ties")
_COUNT = len(_SUMS)
_FLOPS = _COUNT + 1 + len(TokenCounts._fields)


@dataclass
class PairMetrics:
    """Sums over pairs, in float64 on the rewards' device."""

    sums: Tensor
    """``[11]``: loss, accuracy, chosen, rejected, margin, ties; pairs; the three token counts;
    the FLOPs that the pairs need."""

    @classmethod
    def zero(cls, device: torch.device) -> PairMetrics:
        """Return sums over no pairs."""
        return cls(torch.zeros(_FLOPS + 1, dtype=torch.float64, device=device))

    def add(self, rewards: Tensor, losses: Tensor, weights: Tensor, *, tokens: TokenCounts) -> None:
        """Add P pairs: ``rewards`` ``[2P]``, ``losses`` and ``weights`` ``[P]``.

        A tie counts as half correct. A weight of 0 excludes a pair, even if its loss is not finite.
        """
        chosen, rejected = rewards.detach().double().chunk(2)
        margins = chosen - rejected
        ties = (margins == 0).double()
        correct = (margins > 0).double() + ties / 2
        columns = [losses.detach().double(), correct, chosen, rejected, margins, ties]
        columns.append(torch.ones_like(margins))
        rows = torch.stack(columns)
        counted = torch.where(weights > 0, rows, torch.zeros_like(rows)).sum(dim=1)
        self.sums[: len(counted)] += counted
        for i, count in enumerate(tokens, start=len(counted)):
            self.sums[i] += count

    def add_flops(self, flops: float) -> None:
        """Add the FLOPs that pairs need, forward and backward."""
        self.sums[_FLOPS] += flops

    def means(self, prefix: str) -> dict[str, float]:
        """Return ``{prefix/name: mean}``; ``ties`` is the share of pairs with equal rewards."""
        sums = self.sums.tolist()
        return {f"{prefix}/{name}": sums[i] / sums[_COUNT] for i, name in enumerate(_SUMS)}

    @property
    def count(self) -> int:
        """The number of pairs."""
        return round(self.sums[_COUNT].item())

    @property
    def tokens(self) -> TokenCounts:
        """Token counts over all pairs."""
        return TokenCounts(*(round(count) for count in self.sums[_COUNT + 1 : _FLOPS].tolist()))

    @property
    def flops(self) -> float:
        """The FLOPs that all pairs need, forward and backward."""
        return self.sums[_FLOPS].item()
