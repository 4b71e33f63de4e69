"""What is known about the responses of a micro-batch: comparisons, margins and scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Comparisons among the responses of G groups, and the responses' scores.

    Shapes: G = groups, R = responses, C = comparisons. Rewards are ``[R]``, in the order of the
    groups and of each group's responses.
    """

    better: Tensor
    """``[C]`` int64: index of the better response among all R."""

    worse: Tensor
    """``[C]`` int64: index of the worse response."""

    group: Tensor
    """``[C]`` int64: each comparison's group."""

    weight: Tensor
    """``[C]`` float32: sums to 1 in each group that has comparisons."""

    margin: Tensor
    """``[C]`` float32: how much better the better response is; 0 where that is not known."""

    probability: Tensor
    """``[C]`` float32 in [0.5, 1]: that ``better`` wins; exactly 0.5 is a tie."""

    scores: Tensor
    """``[R]`` float32: higher is better; NaN where a response has no score."""

    response_group: Tensor
    """``[R]`` int64: each response's group."""

    group_weights: Tensor
    """``[G]`` float32: 1 for a group that counts, 0 for a filler, which must not influence
    anything."""


def pair_labels(margins: Tensor, weights: Tensor) -> Labels:
    """Return the labels of P pairs, whose rewards are chosen 0, rejected 0, chosen 1, ...

    ``margins`` and ``weights`` are ``[P]``; a weight is 1 for a pair that counts and 0 for a
    filler. The labels are on the margins' device.
    """
    responses = torch.arange(2 * len(margins), device=margins.device)
    chosen, rejected = responses[0::2], responses[1::2]
    pairs = responses[: len(margins)]
    ones = torch.ones_like(margins, dtype=torch.float32)
    return Labels(
        better=chosen,
        worse=rejected,
        group=pairs,
        weight=ones,
        margin=margins.to(torch.float32),
        probability=ones,
        scores=torch.full(responses.shape, torch.nan, device=margins.device),
        response_group=responses // 2,
        group_weights=weights.to(torch.float32),
    )
