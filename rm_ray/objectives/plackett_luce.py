"""Likelihood of a ranking: each response is the best of those that it beats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rm_ray.batches.labels import Labels
from rm_ray.objectives.losses import Losses, comparisons_count, prepare_rewards, sum_by_group


@dataclass(frozen=True, kw_only=True)
class PlackettLuce:
    """Negative log-likelihood that each response is chosen from itself and those it beats.

    With W(i) the responses that some comparison says are worse than i, a group's loss is the mean
    over the responses with a W(i) of log(exp(r_i) + sum over W(i) of exp(r_j)) - r_i. If all
    responses are ranked and compared, those terms add up to the Plackett-Luce model's (Plackett,
    Applied Statistics 24, 1975). For one pair the loss equals Bradley-Terry's.

    A tie puts neither response below the other. Margins, and how far a weight is above 0 or a
    probability above 0.5, make no difference.
    """

    parts: ClassVar[tuple[str, ...]] = ("loss",)

    def __call__(self, rewards: Tensor, labels: Labels) -> Losses:
        """Return the losses of G groups from their ``[R]`` rewards."""
        rewards = prepare_rewards(rewards, labels)
        decided = comparisons_count(labels) & (labels.probability > 0.5)
        counts = decided & _is_first(labels.better * len(rewards) + labels.worse, decided)

        behind = rewards.index_select(0, labels.worse) - rewards.index_select(0, labels.better)
        lead_of_others, wins = _logsumexp(behind, counts, labels.better, len(rewards))
        losses = torch.where(wins, -F.logsigmoid(-lead_of_others), 0)

        num_wins = sum_by_group(wins.to(losses.dtype), labels.response_group, labels)
        total = sum_by_group(losses, labels.response_group, labels)
        groups = total / num_wins.clamp(min=1)
        return Losses(groups=groups, has_loss=num_wins > 0, parts={"loss": groups})


def _is_first(keys: Tensor, counts: Tensor) -> Tensor:
    """Return ``[C]`` bool: whether no earlier element that counts has the same key.

    Two comparisons of the same responses with the same result are one. Sorting keeps every shape.
    """
    order = torch.where(counts, keys, -1).argsort(stable=True)
    ordered = keys.index_select(0, order)
    repeats = torch.zeros_like(counts)
    repeats[1:] = ordered[1:] == ordered[:-1]
    return torch.zeros_like(counts).scatter(0, order, ~repeats)


def _logsumexp(
    values: Tensor, counts: Tensor, rows: Tensor, num_rows: int
) -> tuple[Tensor, Tensor]:
    """Return ``[num_rows]`` log-sums of the values that count, and whether a row has any.

    ``values``, ``counts`` and ``rows``, each value's row, are ``[C]``. A row without any is 0. The
    result for a single value is that value, exactly.
    """
    any_counts = values.new_zeros(num_rows).index_add(0, rows, counts.to(values.dtype)) > 0
    candidates = torch.where(counts, values.detach(), -torch.inf)
    largest = values.new_full((num_rows,), -torch.inf).scatter_reduce(0, rows, candidates, "amax")
    largest = torch.where(any_counts, largest, 0)
    shifted = torch.where(counts, values - largest.index_select(0, rows), 0)
    terms = torch.where(counts, shifted.exp(), 0)
    total = values.new_zeros(num_rows).index_add(0, rows, terms)
    return largest + torch.where(any_counts, total, 1).log(), any_counts
