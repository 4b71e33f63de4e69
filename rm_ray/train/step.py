"""One optimizer step: the gradient is the mean of the pair losses over the global batch.

A step has three parts: ``accumulate_gradients`` on each rank, a sum over ranks, and the engine's
update, whose numbers ``check_step`` validates. ``train_step`` runs all three; the training loop
runs them one by one, to count votes in the same all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.train.collectives import gather_objects, sum_over_ranks
from rm_ray.train.loss import bradley_terry_loss
from rm_ray.train.metrics import PairMetrics

if TYPE_CHECKING:  # the step itself needs neither Accelerate nor DeepSpeed
    from rm_ray.train.engine import Engine


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient is not finite; every rank raises it."""

    def __init__(self, step: int, pairs: Sequence[int]) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step
        self.pairs = tuple(pairs)
        """Indices of the pairs whose loss is not finite, or of all if only the gradient is not."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of a step, over all ranks."""

    pairs: PairMetrics
    grad_norm: float


@dataclass(frozen=True, kw_only=True)
class RankGradients:
    """This rank's share of a step before the sum over ranks; the engine holds its gradients."""

    micro_batches: Sequence[ReadyMicroBatch]
    num_pairs: int
    """Pairs of the step, over all ranks."""
    metrics: PairMetrics
    checks: Sequence[Tensor]
    """``[P]`` per micro-batch: not finite for pairs whose loss or rewards are not."""

    @property
    def sums(self) -> Tensor:
        """The metrics to sum over ranks: ``[N]`` float64, on the device."""
        return self.metrics.sums


def train_step(
    engine: Engine,
    micro_batches: Sequence[ReadyMicroBatch],
    *,
    num_pairs: int,
    learning_rate: float,
    flops: float = 0.0,
    on_micro_batch: Callable[[], None] = lambda: None,
) -> StepMetrics:
    """Train on this rank's micro-batches of a step with ``num_pairs`` over all ranks.

    Raises:
        NonFiniteLossError: a loss, reward or gradient is not finite; weights and AdamW's state
            have not changed.
    """
    gradients = accumulate_gradients(
        engine, micro_batches, num_pairs=num_pairs, flops=flops, on_micro_batch=on_micro_batch
    )
    sum_over_ranks(gradients.sums)
    sums, grad_norm = engine.step(learning_rate, gradients.sums)
    return check_step(gradients, sums, grad_norm)


def accumulate_gradients(
    engine: Engine,
    micro_batches: Sequence[ReadyMicroBatch],
    *,
    num_pairs: int,
    flops: float = 0.0,
    on_micro_batch: Callable[[], None] = lambda: None,
) -> RankGradients:
    """Compute the gradients of this rank's share of a step with ``num_pairs`` over all ranks.

    Never synchronizes with the device. A pair whose loss is not finite makes the gradients NaN, so
    the engine skips the update. ``flops`` is what this rank's pairs need, for the metrics.
    """
    metrics = PairMetrics.zero(engine.device)
    metrics.add_flops(flops)
    checks: list[Tensor] = []
    scale = engine.world_size / num_pairs  # the engine averages over ranks
    for i, micro_batch in enumerate(micro_batches):
        pairs = micro_batch.pairs
        with engine.micro_batch(is_last=i == len(micro_batches) - 1):
            rewards = engine.rewards(pairs)
            chosen, rejected = rewards.chunk(2)
            losses = bradley_terry_loss(chosen, rejected, pairs.margins)
            checks.append((losses + chosen - rejected).detach())
            loss = (losses * pairs.weights).sum() * scale
            engine.backward(loss * _one_if_finite(checks[-1], pairs.weights))
        metrics.add(rewards, losses, pairs.weights, tokens=micro_batch.tokens)
        on_micro_batch()
    return RankGradients(
        micro_batches=micro_batches, num_pairs=num_pairs, metrics=metrics, checks=checks
    )


def check_step(gradients: RankGradients, sums: Sequence[float], grad_norm: float) -> StepMetrics:
    """Return the metrics of a step from its sums over ranks and its gradient norm.

    Every rank calls it, with the same numbers.

    Raises:
        NonFiniteLossError: a number is not finite; the engine has not updated the weights.
    """
    metrics = PairMetrics(torch.tensor(sums, dtype=torch.float64))
    num_pairs = gradients.num_pairs
    assert metrics.count == num_pairs, f"{metrics.count} pairs in a step of {num_pairs}"
    step = gradients.micro_batches[0].loaded.plan.step
    if not metrics.sums.isfinite().all():
        raise NonFiniteLossError(step, _non_finite_pairs(gradients, gradients.checks))
    if not math.isfinite(grad_norm):
        everything = [torch.full_like(check, math.nan) for check in gradients.checks]
        raise NonFiniteLossError(step, _non_finite_pairs(gradients, everything))
    return StepMetrics(pairs=metrics, grad_norm=grad_norm)


def _one_if_finite(checks: Tensor, weights: Tensor) -> Tensor:
    """Return 1, or NaN if the check ``[P]`` of any pair with a weight is not finite.

    A loss may be infinite although its gradient is finite. Multiplied by NaN, the gradient becomes
    NaN on every rank, and no rank updates. This does not synchronize with the device.
    """
    return 1 + (torch.where(weights > 0, checks, 0) * 0).sum()


def _non_finite_pairs(gradients: RankGradients, checks: Sequence[Tensor]) -> list[int]:
    """Return the pairs of all ranks whose check ``[P]`` is not finite."""
    mine = [
        int(pair)
        for micro_batch, check in zip(gradients.micro_batches, checks, strict=True)
        for pair, value in zip(micro_batch.loaded.plan.pairs, check.tolist(), strict=True)
        if not math.isfinite(value)
    ]
    return sorted({pair for pairs in gather_objects(mine) for pair in pairs})
