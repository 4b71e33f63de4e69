"""Attention pattern of ranked lists: tails that share a prefix are computed over it together.

Where a group has several tails besides its first branch, their queries lie side by side in the row
and see the same prefix, whole. So one product without a mask serves them all, without a copy of
the prefix for each; what each tail sees of itself is a causal square. ``shared_prefix`` in
``rm_ray.model.kernels`` joins the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rm_ray.batches.attention_index import (
    Branches,
    GroupedQueries,
    Kernel,
    VarlenQueries,
    index_groups,
    index_sequences,
)
from rm_ray.data.cache.group_tokens import ragged_arange

MIN_SHARED = 2**14
"""Query-key products of one head from which tails are computed over their prefix together."""


@dataclass(frozen=True, kw_only=True)
class SharedPrefix:
    """Queries ``first_query`` up to ``end_query`` of the tails, and their prefix in the row."""

    first_query: int
    end_query: int
    first_key: int
    end_key: int


@dataclass(frozen=True, kw_only=True)
class SharedTails:
    """M queries of tails, each of which sees its whole prefix, and its own tail causally.

    ``positions`` ``[M]`` int64 are the queries' among the row's; ``own`` numbers them from 0.
    """

    positions: Tensor
    prefixes: tuple[SharedPrefix, ...]
    own: GroupedQueries


@dataclass(frozen=True, kw_only=True)
class SharedQueries:
    """N queries: of ``rest`` first, then of ``tails``; ``outputs`` ``[N]`` is each one's place."""

    branches: Branches
    rest: GroupedQueries
    tails: SharedTails
    outputs: Tensor

    @cached_property
    def apart(self) -> GroupedQueries:
        """The same queries with a prefix of its own for every branch, as a window needs it."""
        return index_groups(self.branches)


Queries = VarlenQueries | GroupedQueries | SharedQueries


def index_attention(branches: Branches, kernel: Kernel) -> Queries:
    """Return the indices that the kernel needs for these branches."""
    if kernel == "varlen":
        return index_sequences(branches)
    is_shared = _are_shared(branches) if kernel == "shared" else np.zeros(0, dtype=bool)
    return _index_shared(branches, is_shared) if is_shared.any() else index_groups(branches)


def split_shared(queries: Queries) -> tuple[GroupedQueries, int]:
    """Return the queries that have keys of their own, and how many share the row's."""
    if isinstance(queries, SharedQueries):
        return queries.rest, len(queries.tails.positions)
    assert isinstance(queries, GroupedQueries)
    return queries, 0


def _are_shared(branches: Branches) -> np.ndarray:
    """Return which branches to compute over their prefix together: ``[S]`` bool.

    They are whole tails, two or more of a group, with enough to compute.
    """
    is_tail = (branches.prefix_length > 0) & (branches.num_queries == branches.tail_length)
    group = np.cumsum(branches.prefix_length == 0)  # a group's first branch has no prefix
    products = np.bincount(group, is_tail * branches.num_queries * branches.prefix_length)
    is_worth_it = (np.bincount(group, is_tail) > 1) & (products >= MIN_SHARED)
    shared: np.ndarray = is_tail & is_worth_it[group]
    return shared


def _index_shared(branches: Branches, is_shared: np.ndarray) -> SharedQueries:
    first_query = np.cumsum(branches.num_queries) - branches.num_queries
    of_rest = ragged_arange(first_query[~is_shared], branches.num_queries[~is_shared])
    of_tails = ragged_arange(first_query[is_shared], branches.num_queries[is_shared])
    outputs = np.empty(len(of_rest) + len(of_tails), dtype=np.int64)
    outputs[np.concatenate([of_rest, of_tails])] = np.arange(len(outputs))
    tails = branches.only(is_shared)
    return SharedQueries(
        branches=branches,
        rest=index_groups(branches.only(~is_shared), of_rest),
        tails=SharedTails(
            positions=torch.from_numpy(of_tails),
            prefixes=_prefixes(tails),
            own=index_groups(tails.without_prefix()),
        ),
        outputs=torch.from_numpy(outputs),
    )


def _prefixes(tails: Branches) -> tuple[SharedPrefix, ...]:
    """Return each prefix of the tails, with the stretch of queries that see it."""
    starts = np.flatnonzero(np.diff(tails.prefix_start, prepend=-1))
    ends = np.append(starts[1:], len(tails.prefix_start)) - 1
    end_query = np.cumsum(tails.num_queries)
    first_query = end_query - tails.num_queries
    return tuple(
        SharedPrefix(
            first_query=int(first_query[start]),
            end_query=int(end_query[end]),
            first_key=int(tails.prefix_start[start]),
            end_key=int(tails.prefix_start[start] + tails.prefix_length[start]),
        )
        for start, end in zip(starts, ends, strict=True)
    )
