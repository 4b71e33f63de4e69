"""Which tokens of a packed row attend to which, as indices for the kernel that computes it.

A pair is two branches over one shared prefix. As attention that is two sequences: the queries of
prefix and chosen tail over their own keys, and the queries of the rejected tail over the keys of
prefix and rejected tail, each causal and aligned to the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rm_ray.data.cache.pair_tokens import ragged_arange

Kernel = Literal["varlen", "grouped"]
"""Variable-length flash attention in one call, or scaled dot products over groups of branches."""

KEY_WORK = 64
"""Work of gathering a key, in query-key products of one head; measured roughly, on CPUs."""

SMALL_WORK = 2**18
"""Work up to which branches are computed together however they differ in length."""

MOST_WASTE = 0.15
"""Share of its work that a larger group may spend on padding."""


@dataclass(frozen=True, kw_only=True)
class VarlenQueries:
    """S sequences of queries over S sequences of keys, for one variable-length call.

    ``query_starts`` and ``key_starts`` ``[S + 1]`` int32; ``key_positions`` ``[K]`` int64 in the
    row. Queries lie in the row's order, which is that of the sequences.
    """

    query_starts: Tensor
    key_starts: Tensor
    key_positions: Tensor
    most_queries: int
    most_keys: int


@dataclass(frozen=True, kw_only=True)
class BranchGroup:
    """G branches computed as one batch, padded to Q queries and K keys by repeating the last ones.

    ``query_ranks`` ``[G, Q]`` int64 is each query's place among the keys of its branch, and
    ``mask`` ``[G, 1, Q, K]`` tells which keys are at or before it; no mask where the query at i
    has rank i throughout, so that plain causal attention is right.
    """

    num_keys: int
    query_ranks: Tensor
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GroupedQueries:
    """N queries, and keys of the row, as groups of branches, one group after another.

    ``query_order`` ``[sum(G Q)]`` numbers the queries, ``key_positions`` ``[sum(G K)]`` are places
    in the row, both with padding; ``outputs`` ``[N]`` says where each query ended up.
    """

    groups: tuple[BranchGroup, ...]
    query_order: Tensor
    key_positions: Tensor
    outputs: Tensor


Queries = VarlenQueries | GroupedQueries


@dataclass(frozen=True, kw_only=True)
class Branches:
    """S branches in the row's order: each ``[S]``.

    The keys of a branch are a run of the row (empty for a chosen branch, which begins with its
    prefix) and then another, its tail; its queries are the last of the tail.
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
    """Return the indices that a kernel needs for the attention of some branches."""
    return _index_sequences(branches) if kernel == "varlen" else _index_groups(branches)


def interleave(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Return two ``[N]`` columns in turn: ``[2N]``."""
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
        most_queries=int(branches.num_queries.max()),
        most_keys=int(branches.num_keys.max()),
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
    """Group branches of which little is lost when they are padded to the largest of the group."""
    is_square = num_queries == num_keys
    order = np.lexsort((num_queries, num_keys, is_square))
    groups: list[np.ndarray] = []
    begin = most_queries = needed = 0
    for end, branch in enumerate(order.tolist()):
        queries, keys = int(num_queries[branch]), int(num_keys[branch])
        most_queries, needed = max(most_queries, queries), needed + keys * (queries + KEY_WORK)
        work = (end - begin + 1) * keys * (most_queries + KEY_WORK)  # keys only grow
        fits = work <= SMALL_WORK or work - needed <= MOST_WASTE * work
        if end > begin and not (fits and is_square[branch] == is_square[order[begin]]):
            groups.append(order[begin:end])
            begin, most_queries, needed = end, queries, keys * (queries + KEY_WORK)
    return [*groups, order[begin:]]
