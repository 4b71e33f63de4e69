"""Pairs -> one right-padded batch of both conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PaddedPairs:
    """P pairs as 2P right-padded rows of T tokens: first all chosen, then all rejected.

    Shapes: ``input_ids`` and ``attention_mask`` are ``[2P, T]`` int64, ``last_positions`` (of each
    row's last token) ``[2P]`` int64, ``margins`` and ``weights`` ``[P]`` float32.
    """

    input_ids: Tensor
    attention_mask: Tensor
    last_positions: Tensor
    margins: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device, copied without waiting."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)}
        return type(self)(**moved)


def pad_pairs(
    chosen: Sequence[np.ndarray],
    rejected: Sequence[np.ndarray],
    *,
    margins: np.ndarray,
    weights: np.ndarray,
    pad_token_id: int,
) -> PaddedPairs:
    """Lay P chosen and P rejected id sequences out as one right-padded batch."""
    rows = [*chosen, *rejected]
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
