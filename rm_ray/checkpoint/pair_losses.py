"""The losses of a run's pairs: each pair's in each epoch, at the step that trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(kw_only=True)
class PairLosses:
    """Losses by epoch and pair. Each rank keeps its own pairs'; those of all ranks are disjoint."""

    values: np.ndarray
    """``[epochs, pairs]`` float32; NaN where a pair was not trained on, or has no loss."""

    @classmethod
    def empty(cls, num_epochs: int, num_groups: int) -> PairLosses:
        """Return the losses of a run before its first step."""
        return cls(values=np.full((num_epochs, num_groups), np.nan, dtype=np.float32))

    def add(self, epoch: int, pairs: np.ndarray, losses: np.ndarray) -> None:
        """Keep the losses of these pairs, given by their indices, in an epoch."""
        self.values[epoch, pairs] = losses

    def write(self, path: Path) -> None:
        """Write the losses, 4 bytes per pair and epoch."""
        np.save(path, self.values, allow_pickle=False)

    @classmethod
    def read(cls, path: Path) -> PairLosses:
        """Read losses written by ``write``."""
        return cls(values=np.load(path, allow_pickle=False))
