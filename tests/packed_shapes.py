"""Pairs of given lengths for tests, packed."""

import numpy as np
import pytest
from hypothesis import strategies as st

from rm_ray.batches import attention_index
from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.packing import PackedPairs, pack_pairs
from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens

Shape = tuple[int, int, int]
"""Tokens of a pair's prefix, chosen tail and rejected tail."""

KERNELS: tuple[Kernel, ...] = ("varlen", "grouped")

prefixes = st.integers(0, 3) | st.integers(0, 30)

tails = st.integers(1, 3) | st.integers(1, 30)

shapes_of_pairs = st.lists(st.tuples(prefixes, tails, tails), min_size=1, max_size=8)


def of_shapes(shapes: list[Shape]) -> PairTokens:
    """Return pairs of these shapes in which no two tokens are alike."""
    prefix, chosen, rejected = np.array(shapes, dtype=np.int32).T
    return PairTokens(
        tokens=np.arange(100, 100 + prefix.sum() + chosen.sum() + rejected.sum(), dtype=np.int32),
        lengths=PairLengths(chosen=prefix + chosen, rejected=prefix + rejected, prefix=prefix),
    )


def pack(
    shapes: list[Shape],
    kernel: Kernel,
    *,
    small_work: int = attention_index.SMALL_WORK,
    max_waste: float = attention_index.MAX_WASTE,
) -> PackedPairs:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_index, "SMALL_WORK", small_work)
        patch.setattr(attention_index, "MAX_WASTE", max_waste)
        return pack_pairs(
            of_shapes(shapes),
            margins=np.zeros(len(shapes)),
            weights=np.ones(len(shapes)),
            kernel=kernel,
        )
