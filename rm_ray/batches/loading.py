"""A planned step -> its micro-batches with token ids, read from a memory-mapped table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rm_ray.batches.plan import MicroBatch, Plan
from rm_ray.data.cache.pair_tokens import PairTokens

if TYPE_CHECKING:  # token_table needs pyarrow, which a bare GPU machine may lack
    from rm_ray.data.cache.token_table import TokenTable


@dataclass(frozen=True, kw_only=True)
class LoadedMicroBatch:
    """A planned micro-batch of P pairs with its token ids.

    ``margins`` and ``prompt_lengths`` are ``[P]``.
    """

    plan: MicroBatch
    pairs: PairTokens
    margins: np.ndarray
    prompt_lengths: np.ndarray


def load_step(
    table: TokenTable, plan: Plan, step: int, *, rank: int, world_size: int
) -> Iterator[LoadedMicroBatch]:
    """Yield a rank's micro-batches of a step with their token ids."""
    for micro_batch in plan.micro_batches(step, rank=rank, world_size=world_size):
        yield LoadedMicroBatch(
            plan=micro_batch,
            pairs=table.gather(micro_batch.pairs),
            margins=table.margin[micro_batch.pairs],
            prompt_lengths=table.prompt_length[micro_batch.pairs],
        )
