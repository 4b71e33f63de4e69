"""Groups of given lengths for tests, packed."""

import numpy as np
import pytest
from hypothesis import strategies as st

from rm_ray.batches import attention_index, shared_prefix_index
from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens

Shape = tuple[int, ...]
"""Tokens of a group's prefix, and of the tail of each of its conversations."""

KERNELS: tuple[Kernel, ...] = ("varlen", "grouped", "shared")

prefixes = st.integers(0, 3) | st.integers(0, 30)

tails = st.integers(1, 3) | st.integers(1, 30)

shapes_of_groups = st.lists(
    st.builds(
        lambda prefix, tails: (prefix, *tails), prefixes, st.lists(tails, min_size=1, max_size=5)
    ),
    min_size=1,
    max_size=8,
)


def of_shapes(shapes: list[Shape]) -> GroupTokens:
    """Return groups of these shapes in which no two tokens are alike."""
    return GroupTokens(
        tokens=np.arange(100, 100 + sum(map(sum, shapes)), dtype=np.int32),
        lengths=GroupLengths(
            num_responses=np.array([len(tails) for _, *tails in shapes], dtype=np.int32),
            prefix=np.array([prefix for prefix, *_ in shapes], dtype=np.int32),
            conversations=np.array(
                [prefix + tail for prefix, *tails in shapes for tail in tails], dtype=np.int32
            ),
        ),
    )


def pack(
    shapes: list[Shape],
    kernel: Kernel,
    *,
    small_work: int = attention_index.SMALL_WORK,
    max_waste: float = attention_index.MAX_WASTE,
    max_mask: int = attention_index.MAX_MASK,
    min_shared: int = 1,
) -> PackedGroups:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_index, "SMALL_WORK", small_work)
        patch.setattr(attention_index, "MAX_WASTE", max_waste)
        patch.setattr(attention_index, "MAX_MASK", max_mask)
        patch.setattr(shared_prefix_index, "MIN_SHARED", min_shared)
        groups = of_shapes(shapes)
        return pack_groups(groups, unlabelled(groups), kernel=kernel)
