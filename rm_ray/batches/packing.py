"""Pairs -> one row of distinct tokens.

A pair is two branches over one shared prefix. It is laid out as ``prefix, chosen tail, rejected
tail``; position ids restart after the prefix for the rejected tail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rm_ray.batches.attention_index import (
    Branches,
    Kernel,
    Queries,
    index_attention,
    interleave,
)
from rm_ray.data.cache.pair_tokens import PairTokens, ragged_arange


@dataclass(frozen=True, kw_only=True)
class PackedPairs:
    """P pairs in one row of T distinct tokens.

    Shapes: ``input_ids`` and ``position_ids`` ``[1, T]`` int64, ``last_positions`` (the last token
    of each pair's chosen branch, then of its rejected branch) ``[2P]`` int64, ``margins`` and
    ``weights`` ``[P]`` float32. ``everywhere`` indexes attention for all T queries, ``at_ends``
    only for the queries of the 2P last tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    last_positions: Tensor
    everywhere: Queries
    at_ends: Queries
    margins: Tensor
    weights: Tensor


def pack_pairs(
    pairs: PairTokens, *, margins: np.ndarray, weights: np.ndarray, kernel: Kernel
) -> PackedPairs:
    """Lay out P pairs as one row, with the attention indices that ``kernel`` needs."""
    prefix = pairs.lengths.prefix.astype(np.int64)
    chosen = pairs.lengths.chosen.astype(np.int64)
    start = pairs.starts
    runs = {
        "prefix_start": interleave(start, start),
        "prefix_length": interleave(np.zeros_like(prefix), prefix),
        "tail_start": interleave(start, start + chosen),
        "tail_length": interleave(chosen, pairs.lengths.rejected - prefix),
    }
    everywhere = Branches(**runs, num_queries=runs["tail_length"])
    at_ends = Branches(**runs, num_queries=np.ones_like(prefix, shape=2 * len(pairs)))
    return PackedPairs(
        input_ids=torch.from_numpy(pairs.tokens.astype(np.int64))[None],
        position_ids=torch.from_numpy(ragged_arange(runs["prefix_length"], runs["tail_length"]))[
            None
        ],
        last_positions=torch.from_numpy(runs["tail_start"] + runs["tail_length"] - 1),
        everywhere=index_attention(everywhere, kernel),
        at_ends=index_attention(at_ends, kernel),
        margins=torch.tensor(margins, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
    )
