"""The ledger of a run: how often it has trained on each pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(kw_only=True)
class Ledger:
    """Counts per pair. Each rank counts its own pairs; the sum over ranks is the run's ledger."""

    counts: np.ndarray
    """``[pairs]``: how often each pair was trained on."""

    @classmethod
    def empty(cls, num_groups: int) -> Ledger:
        """Return a ledger of zeros."""
        return cls(counts=np.zeros(num_groups, dtype=np.int32))

    def add(self, pairs: np.ndarray) -> None:
        """Count pairs by their indices."""
        np.add.at(self.counts, pairs, 1)

    def check(self, episode: int, *, num_skipped: int = 0) -> None:
        """Assert that the run trained on every pair once before repeating any.

        Each skipped step may leave its pairs one pass behind the others.
        """
        total, least, most = int(self.counts.sum()), self.counts.min(), self.counts.max()
        assert total == episode, f"the ledger counts {total} pairs at episode {episode}"
        spread = most - least
        assert spread <= 1 + num_skipped, f"a pair was trained on {most} times, another {least}"

    @property
    def bounds(self) -> dict[str, int]:
        """The lowest and the highest count of any pair."""
        return {"least": int(self.counts.min()), "most": int(self.counts.max())}

    def write(self, path: Path) -> None:
        """Write the lowest count, and one bit per pair for each count above it."""
        passes, most = int(self.counts.min()), int(self.counts.max())
        bits = [np.packbits(self.counts > done) for done in range(passes, most)]
        num_groups = len(self.counts)
        stacked = np.stack(bits) if bits else np.zeros((0, -(-num_groups // 8)), dtype=np.uint8)
        np.savez_compressed(path, passes=passes, num_groups=num_groups, bits=stacked)

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """Read a ledger written by ``write``."""
        with np.load(path, allow_pickle=False) as stored:
            extra = np.unpackbits(stored["bits"], axis=1, count=int(stored["num_groups"]))
            return cls(counts=extra.sum(axis=0, dtype=np.int32) + np.int32(stored["passes"]))
