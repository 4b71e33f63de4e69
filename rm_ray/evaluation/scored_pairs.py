"""Rewards of compared responses, one row a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def _one() -> np.ndarray:
    return np.ones(())


@dataclass(frozen=True, kw_only=True)
class ScoredPairs:
    """Rewards, required margins, and token counts of N comparisons; each ``[N]``."""

    chosen_rewards: np.ndarray
    rejected_rewards: np.ndarray
    margins: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    weights: np.ndarray = field(default_factory=_one)
    """A group's weigh 1 together; a plain pair weighs 1."""
    probabilities: np.ndarray = field(default_factory=_one)
    """The label's probability that the chosen response is better, in [0.5, 1]; 0.5 is a tie."""
    groups: np.ndarray = field(default_factory=lambda: np.array(-1))
    """Group of each comparison, any integers; by default each has a group of its own."""

    def __post_init__(self) -> None:
        """Give each comparison the defaults of a plain pair."""
        count = len(self.chosen_rewards)
        for name in ("weights", "probabilities"):
            object.__setattr__(self, name, np.broadcast_to(vars(self)[name], count))
        if not self.groups.ndim:
            object.__setattr__(self, "groups", np.arange(count))

    @classmethod
    def join(cls, parts: Sequence[ScoredPairs]) -> ScoredPairs:
        """Concatenate the comparisons of all parts; no group extends over two parts."""
        columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
        numbers = [np.unique(part.groups, return_inverse=True)[1] for part in parts]
        sizes = [int(each.max(initial=-1)) + 1 for each in numbers]
        firsts = np.cumsum([0, *sizes[:-1]])
        columns["groups"] = [own + first for own, first in zip(numbers, firsts, strict=True)]
        return cls(**{name: np.concatenate(arrays) for name, arrays in columns.items()})

    def __len__(self) -> int:
        """Return the number of comparisons."""
        return len(self.chosen_rewards)

    def __getitem__(self, pairs: np.ndarray) -> ScoredPairs:
        """Return the comparisons at the given indices, or where a mask holds."""
        return ScoredPairs(**{name: column[pairs] for name, column in vars(self).items()})

    @property
    def reward_margins(self) -> np.ndarray:
        """Chosen minus rejected reward."""
        margins: np.ndarray = self.chosen_rewards - self.rejected_rewards
        return margins

    @property
    def is_tie(self) -> np.ndarray:
        """Whether the label is a tie."""
        ties: np.ndarray = self.probabilities == 0.5
        return ties

    @property
    def credits(self) -> np.ndarray:
        """1 if the chosen reward is higher, 0.5 if the rewards or the label are a tie, else 0."""
        right = np.nan_to_num(np.heaviside(self.reward_margins, 0.5))
        return np.where(self.is_tie, 0.5, right)
