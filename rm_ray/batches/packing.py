"""Groups -> one row of distinct tokens.

A group is K branches over one shared prefix. It is laid out as ``prefix, tail 1 .. tail K``;
position ids restart after the prefix for every tail but the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rm_ray.batches.attention_index import Branches, Kernel
from rm_ray.batches.cached_prefixes import CachedPrefixes
from rm_ray.batches.labels import Labels
from rm_ray.batches.shared_prefix_index import Queries, index_attention
from rm_ray.data.cache.group_tokens import GroupTokens, ragged_arange


@dataclass(frozen=True, kw_only=True)
class PackedGroups:
    """G groups with R responses in one row of T distinct tokens.

    Shapes: ``input_ids`` and ``position_ids`` ``[1, T]`` int64, ``last_positions`` (the last token
    of each response) ``[R]`` int64. ``everywhere`` indexes attention for all T queries,
    ``at_ends`` only for the queries of the R last tokens. Tokens whose keys and values are
    ``cached`` are not in the row; attention sees them in front of the others of their group.
    """

    input_ids: Tensor
    position_ids: Tensor
    last_positions: Tensor
    everywhere: Queries
    at_ends: Queries
    labels: Labels
    cached: CachedPrefixes | None = None


def pack_groups(
    groups: GroupTokens, labels: Labels, *, kernel: Kernel, cached: CachedPrefixes | None = None
) -> PackedGroups:
    """Lay out G groups as one row, with the attention indices that ``kernel`` needs."""
    lengths = groups.lengths
    prefix_start = np.repeat(groups.own_starts[lengths.starts], lengths.num_responses)
    prefix_length = np.repeat(lengths.prefix.astype(np.int64), lengths.num_responses)
    prefix_length[lengths.starts] = 0  # the first branch includes the prefix
    runs = {
        "prefix_start": prefix_start,
        "prefix_length": prefix_length,
        "tail_start": groups.own_starts,
        "tail_length": groups.own_lengths,
    }
    tokens, num_computed, first_position = groups.tokens, groups.own_lengths, prefix_length
    if cached is not None:
        tokens = tokens[cached.computed.numpy()]
        num_computed, first_position = num_computed.copy(), first_position.copy()
        num_computed[lengths.starts] -= cached.lengths
        first_position[lengths.starts] += cached.lengths
    everywhere = Branches(**runs, num_queries=num_computed)
    at_ends = Branches(**runs, num_queries=np.ones_like(prefix_length))
    return PackedGroups(
        input_ids=torch.from_numpy(tokens.astype(np.int64))[None],
        position_ids=torch.from_numpy(ragged_arange(first_position, num_computed))[None],
        last_positions=torch.from_numpy(np.cumsum(num_computed) - 1),
        everywhere=index_attention(everywhere, kernel),
        at_ends=index_attention(at_ends, kernel),
        labels=labels,
        cached=cached,
    )
