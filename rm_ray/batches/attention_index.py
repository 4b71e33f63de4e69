"""Attention pattern of a packed row, as indices for the attention kernels.

A group is K branches over one shared prefix, which attention sees as K sequences: the queries of
prefix and first tail over their own keys, and the queries of each other tail over the keys of the
prefix and itself. All are causal and aligned to the end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rm_ray.data.cache.group_tokens import ragged_arange

Kernel = Literal["varlen", "grouped", "shared"]
"""One variable-length flash attention call; scaled dot products over groups of branches; or those,
and one over each prefix that several tails share."""

KEY_WORK = 64
"""Cost of gathering one key, in query-key products of one head; a rough CPU measurement."""

SMALL_WORK = 2**18
"""Up to this much work, branches share a group however much their lengths differ."""

MAX_WASTE = 0.15
"""Largest share of its work that a larger group may spend on padding."""

MAX_MASK = 2**24
"""Query-key pairs of a branch whose mask may be stored: attention saves 64 MB for it in float32, in
every layer. No pair of conversations of up to 4,096 tokens has more."""

MAX_SQUARE = 4
"""Keys per query up to which a branch goes without a larger mask. Plain causal attention over all
its keys then computes at most twice as many products as attention with the mask."""


@dataclass(frozen=True, kw_only=True)
class VarlenQueries:
    """S sequences of queries over S sequences of keys, for one variable-length call.

    ``query_starts`` and ``key_starts`` are ``[S + 1]`` int32; ``key_positions`` ``[K]`` int64 are
    positions among all tokens: those of the row, and any that are cached (``CachedPrefixes``).
    Queries are in the row's order, which is also the sequences' order.
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
    has rank i, so that plain causal attention is correct. A branch whose mask would be large is
    made so: its first query fills the ranks before it, and nothing reads those outputs.
    """

    num_keys: int
    query_ranks: Tensor
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GroupedQueries:
    """N queries and the keys of all tokens, as consecutive groups of branches.

    ``query_order`` ``[sum(G Q)]`` holds query numbers, ``key_positions`` ``[sum(G K)]`` positions
    as of ``VarlenQueries``, both with padding; ``outputs`` ``[N]`` is the place of each query in
    ``query_order``.
    """

    groups: tuple[BranchGroup, ...]
    query_order: Tensor
    key_positions: Tensor
    outputs: Tensor


@dataclass(frozen=True, kw_only=True)
class Branches:
    """S branches in the row's order; each field is ``[S]``.

    The keys of a branch are two runs of tokens, a prefix and a tail; the prefix is empty for a
    group's first branch, whose tail includes it. The queries are the last tokens of the tail.
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

    def only(self, which: np.ndarray) -> Branches:
        """Return some of the branches; ``which`` is ``[S]`` bool."""
        return Branches(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def without_prefix(self) -> Branches:
        """Return the tails alone."""
        return replace(self, prefix_length=np.zeros_like(self.prefix_length))


def interleave(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """Return the items of two ``[N]`` columns alternately: ``[2N]``."""
    return np.stack([even, odd], axis=1).reshape(-1)


def index_sequences(branches: Branches) -> VarlenQueries:
    """Return every branch as one sequence."""
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


def index_groups(branches: Branches, positions: np.ndarray | None = None) -> GroupedQueries:
    """Group the branches by what they compute.

    ``positions`` ``[N]`` numbers their queries, where these are not all of the row's.
    """
    num_queries, num_keys = branches.num_queries, branches.num_keys
    num_before = _fill(num_queries, num_keys)
    first_query = np.cumsum(num_queries) - num_queries
    outputs = np.empty(int(num_queries.sum()), dtype=np.int64)
    groups, query_order, key_positions, done = [], [], [], 0
    for members in _similar(num_queries + num_before, num_keys):
        before, keys = num_before[members, None], num_keys[members, None]
        queries = num_queries[members, None] + before
        query = np.arange(queries.max())
        ranks = np.minimum(keys - queries + query, keys - 1)
        own = np.clip(query, before, queries - 1) - before
        query_order.append(first_query[members, None] + own)
        key = np.minimum(np.arange(keys.max()), keys - 1)
        prefix = branches.prefix_length[members, None]
        in_prefix = branches.prefix_start[members, None] + key
        in_tail = branches.tail_start[members, None] + key - prefix
        key_positions.append(np.where(key < prefix, in_prefix, in_tail))
        is_real = (query >= before) & (query < queries)
        outputs[query_order[-1][is_real]] = done + np.flatnonzero(is_real)
        done += is_real.size
        mask = None
        if (queries != keys).any():
            mask = torch.from_numpy(np.arange(keys.max()) <= ranks[:, None, :, None])
        groups.append(
            BranchGroup(num_keys=int(keys.max()), query_ranks=torch.from_numpy(ranks), mask=mask)
        )
    order = np.concatenate([rows.ravel() for rows in query_order])
    return GroupedQueries(
        groups=tuple(groups),
        query_order=torch.from_numpy(order if positions is None else positions[order]),
        key_positions=torch.from_numpy(np.concatenate([keys.ravel() for keys in key_positions])),
        outputs=torch.from_numpy(outputs),
    )


def _fill(num_queries: np.ndarray, num_keys: np.ndarray) -> np.ndarray:
    """Return how many queries to add before each branch's own, so that it needs no mask: ``[S]``.

    0 for a branch whose mask is small, and for one that would compute much more without it.
    """
    is_large = num_queries.astype(np.int64) * num_keys > MAX_MASK
    is_cheap = num_keys <= MAX_SQUARE * num_queries
    return np.where(is_large & is_cheap, num_keys - num_queries, 0)


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
