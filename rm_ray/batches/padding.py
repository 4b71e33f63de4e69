"""Pairs -> one right-padded batch of their conversations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rm_ray.data.cache.pair_tokens import PairTokens


@dataclass(frozen=True, kw_only=True)
class PaddedPairs:
    """P pairs as 2P right-padded rows of T tokens: all chosen, then all rejected.

    Shapes: ``input_ids`` and ``attention_mask`` ``[2P, T]`` int64, ``last_positions`` (each row's
    last token) ``[2P]`` int64, ``margins`` and ``weights`` ``[P]`` float32.
    """

    input_ids: Tensor
    attention_mask: Tensor
    last_positions: Tensor
    margins: Tensor
    weights: Tensor


def pad_pairs(
    pairs: PairTokens, *, margins: np.ndarray, weights: np.ndarray, pad_token_id: int
) -> PaddedPairs:
    """Lay out P pairs as one right-padded batch."""
    sides = (pairs.chosen, pairs.rejected)
    rows = [side(pair) for side in sides for pair in range(len(pairs))]
    lengths = np.array([len(row) for row in rows])
    input_ids = np.full((len(rows), lengths.max()), pad_token_id, dtype=np.int64)
    for target, row in zip(input_ids, rows, strict=True):
        target[: len(row)] = row
    attention_mask = (np.arange(lengths.max())[None, :] < lengths[:, None]).astype(np.int64)
    return PaddedPairs(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        last_positions=torch.from_numpy(lengths - 1),
        margins=torch.tensor(margins, dtype=torch.float32),
        weights=torch.tensor(weights, dtype=torch.float32),
    )
