"""One optimizer step: the gradient is the mean of the pair losses over the global batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.train.loss import bradley_terry_loss
from rm_ray.train.metrics import PairMetrics

if TYPE_CHECKING:  # the step itself runs where Accelerate and DeepSpeed are not installed
    from rm_ray.train.engine import Engine


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient is not a finite number; raised on every rank alike."""

    def __init__(self, step: int, pairs: Sequence[int]) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step
        self.pairs = tuple(pairs)
        """Indices of the pairs whose loss is not finite; all of the step if a gradient is."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step measured, over all ranks."""

    pairs: PairMetrics
    grad_norm: float
    votes: tuple[bool, ...] = ()
    """For each question, whether any rank said yes."""


def train_step(
    engine: Engine,
    micro_batches: Sequence[ReadyMicroBatch],
    *,
    num_pairs: int,
    learning_rate: float,
    flops: float = 0.0,
    votes: Sequence[bool] = (),
    on_micro_batch: Callable[[], None] = lambda: None,
) -> StepMetrics:
    """Train on this rank's micro-batches of a step that holds ``num_pairs`` over all ranks.

    Every rank has as many ``votes``, which travel with the metrics, as do the ``flops`` that its
    pairs need. Nothing is read from the device before all of the step is queued, but what the
    optimizer needs to know.

    Raises:
        NonFiniteLossError: a loss, reward or gradient is not a finite number; weights and AdamW's
            state are as before the step.
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
    together = torch.cat([metrics.sums, _cast(votes, metrics.sums)])
    engine.sum_over_ranks(together)
    numbers, grad_norm = engine.step(learning_rate, together)
    read = torch.tensor(numbers, dtype=torch.float64)
    metrics.sums, ballot = read.tensor_split([len(metrics.sums)])
    assert metrics.count == num_pairs, f"{metrics.count} pairs in a step of {num_pairs}"
    step = micro_batches[0].loaded.plan.step
    if not metrics.sums.isfinite().all():
        raise NonFiniteLossError(step, _at_fault(engine, micro_batches, checks))
    if not math.isfinite(grad_norm):
        everything = [torch.full_like(check, math.nan) for check in checks]
        raise NonFiniteLossError(step, _at_fault(engine, micro_batches, everything))
    agreed = tuple(vote > 0 for vote in ballot.tolist())
    return StepMetrics(pairs=metrics, grad_norm=grad_norm, votes=agreed)


def _cast(votes: Sequence[bool], like: Tensor) -> Tensor:
    """Return votes as numbers beside others, without a copy that the device would be waited for."""
    ballot = like.new_zeros(len(votes))
    for i, vote in enumerate(votes):
        ballot[i] += vote
    return ballot


def _one_if_finite(checks: Tensor, weights: Tensor) -> Tensor:
    """Return 1, or NaN where a check ``[P]`` of a pair that counts is not finite.

    A loss may be infinite while its gradient is finite. Times this, the gradient is NaN, on every
    rank that it is summed over, and no update follows; no number is read from the device for it.
    """
    return 1 + (torch.where(weights > 0, checks, 0) * 0).sum()


def _at_fault(
    engine: Engine, micro_batches: Sequence[ReadyMicroBatch], checks: Sequence[Tensor]
) -> list[int]:
    """Return the pairs, over all ranks, whose check ``[P]`` is not finite."""
    mine = [
        int(pair)
        for micro_batch, check in zip(micro_batches, checks, strict=True)
        for pair, value in zip(micro_batch.loaded.plan.pairs, check.tolist(), strict=True)
        if not math.isfinite(value)
    ]
    return sorted({pair for pairs in engine.gather_objects(mine) for pair in pairs})
