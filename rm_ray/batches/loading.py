"""A planned step -> its micro-batches with token ids, read from a memory-mapped table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rm_ray.batches.plan import MicroBatch, Plan
from rm_ray.data.cache.group_columns import GroupColumns
from rm_ray.data.cache.group_tokens import GroupTokens

if TYPE_CHECKING:  # token_table needs pyarrow, which a bare GPU machine may lack
    from rm_ray.data.cache.token_table import TokenTable


@dataclass(frozen=True, kw_only=True)
class LoadedMicroBatch:
    """A planned micro-batch of G groups with their columns and token ids."""

    plan: MicroBatch
    columns: GroupColumns
    tokens: np.ndarray
    """``[T]`` int32, as in ``GroupTokens``."""

    @property
    def groups(self) -> GroupTokens:
        """The token ids with their lengths."""
        return GroupTokens(tokens=self.tokens, lengths=self.columns.lengths)


def load_step(
    table: TokenTable, plan: Plan, step: int, *, rank: int, world_size: int
) -> Iterator[LoadedMicroBatch]:
    """Yield a rank's micro-batches of a step with their token ids."""
    for micro_batch in plan.micro_batches(step, rank=rank, world_size=world_size):
        columns = table.columns[micro_batch.groups]
        groups = table.read(micro_batch.groups, columns.lengths)
        yield LoadedMicroBatch(plan=micro_batch, columns=columns, tokens=groups.tokens)
