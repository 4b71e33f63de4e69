"""Probabilities of a comparison's outcomes: one response wins, or the two tie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2 = math.log(2)


class Outcomes(Protocol):
    """Negative log-likelihoods ``[C]`` of a comparison's outcomes.

    ``lead`` ``[C]`` is the reward of one response minus that of the other.
    """

    def win(self, lead: Tensor) -> Tensor:
        """Return the loss if the response with this lead wins."""
        ...

    def tie(self, lead: Tensor) -> Tensor:
        """Return the loss if the two tie."""
        ...


@dataclass(frozen=True, kw_only=True)
class BradleyTerryOutcomes:
    """One of the two wins, with probability sigmoid(lead); a tie is half a win for each.

    Source: Bradley and Terry, Biometrika 39 (1952).
    """

    def win(self, lead: Tensor) -> Tensor:
        """Return -log sigmoid(lead)."""
        return -F.logsigmoid(lead)

    def tie(self, lead: Tensor) -> Tensor:
        """Return the mean of the losses of both wins, which is least at a lead of 0."""
        return (self.win(lead) + self.win(-lead)) / 2


@dataclass(frozen=True)
class DavidsonOutcomes:
    """Win, loss and tie in proportion to exp(lead / 2), exp(-lead / 2) and nu.

    Source: Davidson, Journal of the American Statistical Association 65 (1970). Equal responses
    tie with probability nu / (2 + nu).
    """

    nu: float | Tensor = 1.0
    """Above 0, a tensor ``[]`` if it is learned; the default gives equal responses each outcome
    with probability 1/3."""

    def win(self, lead: Tensor) -> Tensor:
        """Return the negative log-probability of a win."""
        return self._log_total(lead) - lead / 2

    def tie(self, lead: Tensor) -> Tensor:
        """Return the negative log-probability of a tie."""
        return self._log_total(lead) - _as(lead, self.nu).log()

    def _log_total(self, lead: Tensor) -> Tensor:
        tie = _as(lead, self.nu).log().expand_as(lead)
        return torch.logsumexp(torch.stack((lead / 2, -lead / 2, tie)), dim=0)


@dataclass(frozen=True)
class RaoKupperOutcomes:
    """A response wins, with probability sigmoid(lead - eta), if its lead is noticed, or they tie.

    Source: Rao and Kupper, Journal of the American Statistical Association 62 (1967), whose theta
    is exp(eta). Equal responses tie with probability tanh(eta / 2).
    """

    eta: float | Tensor = LOG_2
    """Above 0, a tensor ``[]`` if it is learned; the default gives equal responses each outcome
    with probability 1/3."""

    def win(self, lead: Tensor) -> Tensor:
        """Return the negative log-probability of a win."""
        return -F.logsigmoid(lead - self.eta)

    def tie(self, lead: Tensor) -> Tensor:
        """Return the negative log-probability of a tie.

        1 - sigmoid(lead - eta) - sigmoid(-lead - eta)
        = (exp(2 eta) - 1) sigmoid(lead - eta) sigmoid(-lead - eta).
        """
        eta = _as(lead, self.eta)
        log_factor = 2 * eta + torch.log(-torch.expm1(-2 * eta))
        return self.win(lead) + self.win(-lead) - log_factor


def _as(lead: Tensor, parameter: float | Tensor) -> Tensor:
    """Return a parameter ``[]`` in the type and on the device of ``lead``."""
    if isinstance(parameter, Tensor):
        return parameter.to(lead)
    return lead.new_full((), parameter)


def outcome_losses(
    outcomes: Outcomes, *, lead: Tensor, margin: Tensor, label: Tensor, target: Tensor
) -> Tensor:
    """Return the loss ``[C]`` of each comparison: expected if its label is not certain.

    ``label`` is the probability that the better response wins, exactly 0.5 for a tie. ``target``
    replaces it as the weight of a win and 1 - ``target`` as that of a loss; it is above 1 for the
    unbiased loss under flipped labels. ``margin`` is the lead that a certain winner should have on
    top; a flipped label would ask it of the other response. A soft label or a tie has no margin:
    its probability already says how far the rewards should be apart.
    """
    margin = torch.where(label == 1, margin, 0)
    won, lost = outcomes.win(lead - margin), outcomes.win(-lead - margin)
    expected = torch.where(target == 1, won, target * won + (1 - target) * lost)
    return torch.where(label == 0.5, outcomes.tie(lead), expected)


def smooth(label: Tensor, label_smoothing: float) -> Tensor:
    """Return the probability of a win if a share of the labels may be wrong.

    That is conservative DPO's target (Mitchell, "A note on DPO with noisy preferences", 2023).
    """
    return (1 - label_smoothing) * label + label_smoothing * (1 - label)


def undo_noise(label: Tensor, noise: float) -> Tensor:
    """Return the weight of a win that makes the loss unbiased if ``noise`` labels are flipped.

    For a certain label, (1 - noise) / (1 - 2 noise), so that the loss is
    [(1 - noise) win - noise loss] / (1 - 2 noise) (arXiv:2403.00409). In expectation over the
    flips it equals the loss on clean labels. It is not bounded below.
    """
    return (label - noise) / (1 - 2 * noise)
