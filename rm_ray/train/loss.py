"""The Bradley-Terry loss of preference pairs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_rewards: Tensor, rejected_rewards: Tensor, margins: Tensor) -> Tensor:
    """Negative log-likelihood that each chosen response wins (arXiv:2009.01325, p. 6).

    A margin is the lead that the chosen reward should have (arXiv:2307.09288, p. 11).
    Shapes: P = pairs. All arguments and the result are ``[P]``, float32.
    """
    return -F.logsigmoid(chosen_rewards - rejected_rewards - margins)
