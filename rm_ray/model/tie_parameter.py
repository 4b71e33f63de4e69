"""The parameter of ties, learned with the weights of the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STEP = 0.01
"""How far the parameter's logarithm moves in a step at the peak learning rate, like any of AdamW's
parameters: rates that suit a backbone would leave it where it starts."""


class TieParameter(nn.Module):
    """A number above 0; no export has it."""

    def __init__(self, start: float, *, learning_rate: float) -> None:
        super().__init__()
        self._start, self._gain = math.log(start), STEP / learning_rate
        self.moved = nn.Parameter(torch.zeros(1))

    def forward(self) -> Tensor:
        """Return the parameter's logarithm ``[1]``, float32.

        ``moved`` counts ``gain`` times in the value and once in the gradient, so that neither the
        gradient's norm nor its clipping depends on the gain.
        """
        moved = self.moved.float()
        return self._start + moved + (self._gain - 1) * moved.detach()
