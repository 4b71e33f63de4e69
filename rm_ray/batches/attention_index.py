"""Attention pattern of a packed row, as indices for the attention kernels.

A pair is two branches over one shared prefix, which attention sees as two sequences: the queries
of prefix and chosen tail over their own keys, and the queries of the rejected tail over the keys
of prefix and rejected tail. Both are causal and aligned to the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rm_ray.data.cache.pair_tokens import ragged_arange

Kernel = Literal["varlen", "grouped"]
"""One variable-length flash attention call, or scaled dot products over groups of branches."""

KEY_WORK = 64
"""Cost of gathering one key, in query-key products of one head; a rough CPU measurement."""

SMALL_WORK = 2**18
"""Up to this much work, branches share a group however much their lengths differ."""

MAX_WASTE = 0.15
"""Largest share of its work that a larger group may spend on padding."""


@dataclass(frozen=True, kw_only=True)
class VarlenQueries:
    """S sequences of queries over S sequences of keys, for one variable-length call.

    ``query_starts`` and ``key_starts`` are ``[S + 1]`` int32; ``key_positions`` ``[K]`` int64 are
    positions in the row. Queries are in the row's order, which is also the sequences' order.
    """

    query_starts: Tensor
    key_starts: Tensor
    key_positions: Tensor
    max_queries: int
    max_keys: int


@dataclass(frozen=True, kw_only=True)
class BranchGroup:
    """G branches computed as one batch, padded to Q queries and K keys by repeating the last ones.

    ``query_ranks`` ``[G, Q]`` int64 is each query's place among the keys of its branch;
    ``mask`` ``[G, 1, Q, K]`` marks the keys at or before it. ``mask`` is None if query i always
    has rank i, so that plain causal attention is correct.
    """

    num_keys: int
    query_ranks: Tensor
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GroupedQueries:
    """N queries and the row's keys, as consecutive groups of branches.

    ``query_order`` ``[sum(G Q)]`` holds query numbers, ``key_positions`` ``[sum(G K)]`` positions
    in the row, both with padding; ``outputs`` ``[N]`` is the place of each query in
    ``query_order``.
    """

    groups: tuple[BranchGroup, ...]
    query_order: Tensor
    key_positions: Tensor
    outputs: Tensor


Queries = VarlenQueries | GroupedQueries


@dataclass(frozen=True, kw_only=True)
class Branches:
    """S branches in the row's order; each field is ``[S]``.

    The keys of a branch are two runs of the row, a prefix and a tail; the prefix is empty for a
    chosen branch, whose tail includes it. The queries are the last tokens of the tail.
    """

    prefix_start: np.ndarray
    prefix_length: np.ndarray
    tail_start: np.ndarray
    tail_length: np.ndarray
    num_queries: np.ndarray

    @property
    def num_keys(self) -> np.ndarray:
        """Keys of each branch."""
        num_keys: np.ndarray = self.prefix_length + self.tail_length
        return num_keys


def index_attention(branches: Branches, kernel: Kernel) -> Queries:
    """Return the indices that the kernel needs for these branches."""
    return _index_sequences(branches) if kernel == "varlen" else _index_groups(branches)


def interleave(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Return the items of two ``[N]`` columns alternately: ``[2N]``."""
    return np.stack([even, odd], axis=1).reshape(-1)


def _index_sequences(branches: Branches) -> VarlenQueries:
    return VarlenQueries(
        query_starts=_boundaries(branches.num_queries),
        key_starts=_boundaries(branches.num_keys),
        key_positions=torch.from_numpy(
            ragged_arange(
                interleave(branches.prefix_start, branches.tail_start),
                interleave(branches.prefix_length, branches.tail_length),
            )
        ),
        max_queries=int(branches.num_queries.max()),
        max_keys=int(branches.num_keys.max()),
    )


def _boundaries(lengths: np.ndarray) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _index_groups(branches: Branches) -> GroupedQueries:
    num_queries, num_keys = branches.num_queries, branches.num_keys
    first_query = np.cumsum(num_queries) - num_queries
    outputs = np.empty(int(num_queries.sum()), dtype=np.int64)
    groups, query_order, key_positions, done = [], [], [], 0
    for members in _similar(num_queries, num_keys):
        queries, keys = num_queries[members, None], num_keys[members, None]
        query = np.arange(queries.max())
        ranks = np.minimum(keys - queries + query, keys - 1)
        query_order.append(first_query[members, None] + np.minimum(query, queries - 1))
        key = np.minimum(np.arange(keys.max()), keys - 1)
        prefix = branches.prefix_length[members, None]
        in_prefix = branches.prefix_start[members, None] + key
        in_tail = branches.tail_start[members, None] + key - prefix
        key_positions.append(np.where(key < prefix, in_prefix, in_tail))
        is_real = query < queries
        outputs[query_order[-1][is_real]] = done + np.flatnonzero(is_real)
        done += is_real.size
        is_causal = (queries == keys).all()
        mask = np.arange(keys.max()) <= ranks[:, None, :, None]
        groups.append(
            BranchGroup(
                num_keys=int(keys.max()),
                query_ranks=torch.from_numpy(ranks),
                mask=None if is_causal else torch.from_numpy(mask),
            )
        )
    return GroupedQueries(
        groups=tuple(groups),
        query_order=torch.from_numpy(np.concatenate([order.ravel() for order in query_order])),
        key_positions=torch.from_numpy(np.concatenate([keys.ravel() for keys in key_positions])),
        outputs=torch.from_numpy(outputs),
    )


def _similar(num_queries: np.ndarray, num_keys: np.ndarray) -> list[np.ndarray]:
    """Group branches that waste little work when padded to the largest of their group."""
    is_square = num_queries == num_keys
    order = np.lexsort((num_queries, num_keys, is_square))
    groups: list[np.ndarray] = []
    begin = max_queries = needed = 0
    for end, branch in enumerate(order.tolist()):
        queries, keys = int(num_queries[branch]), int(num_keys[branch])
        max_queries, needed = max(max_queries, queries), needed + keys * (queries + KEY_WORK)
        work = (end - begin + 1) * keys * (max_queries + KEY_WORK)  # keys only grow
        fits = work <= SMALL_WORK or work - needed <= MAX_WASTE * work
        if end > begin and not (fits and is_square[branch] == is_square[order[begin]]):
            groups.append(order[begin:end])
            begin, max_queries, needed = end, queries, keys * (queries + KEY_WORK)
    return [*groups, order[begin:]]
