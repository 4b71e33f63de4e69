"""Groups -> one right-padded batch of their conversations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.data.cache.group_tokens import GroupTokens


@dataclass(frozen=True, kw_only=True)
class PaddedGroups:
    """G groups with R responses as R right-padded rows of T tokens.

    The rows hold the first response of each group, then the second one of each, and so on.
    Shapes: ``input_ids`` and ``attention_mask`` ``[R, T]`` int64, ``last_positions`` (each row's
    last token) and ``rows`` (the row of each response) ``[R]`` int64.
    """

    input_ids: Tensor
    attention_mask: Tensor
    last_positions: Tensor
    rows: Tensor
    labels: Labels


def pad_groups(groups: GroupTokens, labels: Labels, *, pad_token_id: int) -> PaddedGroups:
    """Lay out G groups as one right-padded batch."""
    conversations = [ids for group in range(len(groups)) for ids in groups.conversations(group)]
    place = np.concatenate([np.arange(count) for count in groups.lengths.num_responses])
    order = np.argsort(place, kind="stable")
    lengths = groups.lengths.conversations[order].astype(np.int64)
    input_ids = np.full((len(order), lengths.max()), pad_token_id, dtype=np.int64)
    for target, response in zip(input_ids, order, strict=True):
        target[: len(conversations[response])] = conversations[response]
    attention_mask = (np.arange(lengths.max())[None, :] < lengths[:, None]).astype(np.int64)
    return PaddedGroups(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        last_positions=torch.from_numpy(lengths - 1),
        rows=torch.from_numpy(np.argsort(order, kind="stable")),
        labels=labels,
    )
