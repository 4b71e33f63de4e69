"""The scalar head of a reward model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A linear layer that multiplies in float32, whatever the dtype of its weights."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[..., hidden]`` of any float dtype to ``[..., out]`` float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float())


def new_head(hidden_size: int, seed: int) -> Float32Linear:
    """Return a head drawn from N(0, 1/sqrt(hidden + 1)) (arXiv:2009.01325, p. 11)."""
    head = Float32Linear(hidden_size, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(head.weight, std=1 / math.sqrt(hidden_size + 1), generator=generator)
    return head


def head_of(weight: Tensor) -> Float32Linear:
    """Return a head with the given weight, ``[1, hidden]``, in float32."""
    head = Float32Linear(weight.shape[1], 1, bias=False)
    head.weight.data.copy_(weight)
    return head
