"""A planned step -> its micro-batches with token ids, from a mapped table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rm_ray.data.padding import PaddedPairs, pad_pairs
from rm_ray.data.plan import MicroBatch, Plan
from rm_ray.data.token_table import TokenTable


@dataclass(frozen=True, kw_only=True)
class LoadedMicroBatch:
    """A planned micro-batch with its token ids: ``P`` chosen, then ``P`` rejected rows."""

    plan: MicroBatch
    margins: np.ndarray
    prompt_lengths: np.ndarray
    rows: list[np.ndarray]

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversations that count, without padding."""
        weights = np.concatenate([self.plan.weights, self.plan.weights])
        return int(sum(len(row) for row, weight in zip(self.rows, weights, strict=True) if weight))

    def pad(self, pad_token_id: int) -> PaddedPairs:
        """Lay the pairs out as right-padded tensors."""
        middle = len(self.rows) // 2
        return pad_pairs(
            self.rows[:middle],
            self.rows[middle:],
            margins=self.margins,
            weights=self.plan.weights,
            pad_token_id=pad_token_id,
        )


def load_step(
    table: TokenTable, plan: Plan, step: int, *, rank: int, world_size: int
) -> Iterator[LoadedMicroBatch]:
    """Gather the token ids of a rank's micro-batches of a step."""
    for micro_batch in plan.micro_batches(step, rank=rank, world_size=world_size):
        chosen = [table.chosen_ids(pair) for pair in micro_batch.pairs]
        rejected = [table.rejected_ids(pair) for pair in micro_batch.pairs]
        yield LoadedMicroBatch(
            plan=micro_batch,
            margins=table.margin[micro_batch.pairs],
            prompt_lengths=table.prompt_length[micro_batch.pairs],
            rows=chosen + rejected,
        )
