"""One optimizer step: the gradient is the mean of the groups' losses over the global batch.

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
from rm_ray.batches.labels import Labels
from rm_ray.objectives.losses import Losses, Objective, sum_by_group
from rm_ray.train.collectives import gather_objects, sum_over_ranks
from rm_ray.train.metrics import GroupMetrics

if TYPE_CHECKING:  # the step itself needs neither Accelerate nor DeepSpeed
    from rm_ray.train.engine import Engine


class NonFiniteLossError(ArithmeticError):
    """A loss or gradient is not finite; every rank raises it."""

    def __init__(self, step: int, groups: Sequence[int]) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step
        self.groups = tuple(groups)
        """Indices of the groups whose loss is not finite, or of all if only the gradient is not."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of a step, over all ranks."""

    groups: GroupMetrics
    grad_norm: float


@dataclass(frozen=True, kw_only=True)
class RankGradients:
    """This rank's share of a step before the sum over ranks; the engine holds its gradients."""

    micro_batches: Sequence[ReadyMicroBatch]
    num_groups: int
    """Groups of the step, over all ranks."""
    metrics: GroupMetrics
    checks: Sequence[Tensor]
    """``[G]`` per micro-batch: not finite for groups whose loss or rewards are not."""
    losses: Sequence[Tensor] = ()
    """``[G]`` per micro-batch, if they are kept: each group's loss, without other parts of the
    objective; NaN where it has none."""

    @property
    def sums(self) -> Tensor:
        """The metrics to sum over ranks: ``[N]`` float64, on the device."""
        return self.metrics.sums


def train_step(
    engine: Engine,
    objective: Objective,
    micro_batches: Sequence[ReadyMicroBatch],
    *,
    num_groups: int,
    learning_rate: float,
    flops: float = 0.0,
    on_micro_batch: Callable[[], None] = lambda: None,
) -> StepMetrics:
    """Train on this rank's micro-batches of a step with ``num_groups`` over all ranks.

    Raises:
        NonFiniteLossError: a loss, reward or gradient is not finite; weights and AdamW's state
            have not changed.
    """
    gradients = accumulate_gradients(
        engine,
        objective,
        micro_batches,
        num_groups=num_groups,
        flops=flops,
        on_micro_batch=on_micro_batch,
    )
    sum_over_ranks(gradients.sums)
    sums, grad_norm = engine.step(learning_rate, gradients.sums)
    return check_step(gradients, sums, grad_norm)


def accumulate_gradients(
    engine: Engine,
    objective: Objective,
    micro_batches: Sequence[ReadyMicroBatch],
    *,
    num_groups: int,
    flops: float = 0.0,
    on_micro_batch: Callable[[], None] = lambda: None,
    keeps_losses: bool = False,
) -> RankGradients:
    """Compute the gradients of this rank's share of a step with ``num_groups`` over all ranks.

    Never synchronizes with the device. A group whose loss is not finite makes the gradients NaN, so
    the engine skips the update. ``flops`` is what this rank's groups need, for the metrics.
    """
    metrics = GroupMetrics.zero(engine.device, objective.parts)
    metrics.add_flops(flops)
    checks: list[Tensor] = []
    kept: list[Tensor] = []
    scale = engine.world_size / num_groups  # the engine averages over ranks
    for i, micro_batch in enumerate(micro_batches):
        groups = micro_batch.groups
        labels = groups.labels
        with engine.micro_batch(is_last=i == len(micro_batches) - 1):
            outputs = engine.outputs(groups)
            losses = objective(outputs, labels)
            rewards = outputs[: len(labels.response_group)]
            checks.append(_check(rewards, losses, labels))
            loss = (losses.groups * labels.group_weights).sum() * scale
            engine.backward(loss * _one_if_finite(checks[-1], labels.group_weights))
        metrics.add(rewards, losses, labels, tokens=micro_batch.tokens)
        if keeps_losses:
            kept.append(torch.where(losses.has_loss, losses.parts["loss"].detach(), math.nan))
        on_micro_batch()
    return RankGradients(
        micro_batches=micro_batches,
        num_groups=num_groups,
        metrics=metrics,
        checks=checks,
        losses=kept,
    )


def check_step(gradients: RankGradients, sums: Sequence[float], grad_norm: float) -> StepMetrics:
    """Return the metrics of a step from its sums over ranks and its gradient norm.

    Every rank calls it, with the same numbers.

    Raises:
        NonFiniteLossError: a number is not finite; the engine has not updated the weights.
    """
    metrics = GroupMetrics(torch.tensor(sums, dtype=torch.float64), gradients.metrics.parts)
    num_groups = gradients.num_groups
    assert metrics.count == num_groups, f"{metrics.count} groups in a step of {num_groups}"
    step = gradients.micro_batches[0].loaded.plan.step
    if not metrics.sums.isfinite().all():
        raise NonFiniteLossError(step, _non_finite_groups(gradients, gradients.checks))
    if not math.isfinite(grad_norm):
        everything = [torch.full_like(check, math.nan) for check in gradients.checks]
        raise NonFiniteLossError(step, _non_finite_groups(gradients, everything))
    return StepMetrics(groups=metrics, grad_norm=grad_norm)


def _check(rewards: Tensor, losses: Losses, labels: Labels) -> Tensor:
    """Return ``[G]`` numbers that are not finite for groups whose loss or a reward is not."""
    return (losses.groups + sum_by_group(rewards, labels.response_group, labels)).detach()


def _one_if_finite(checks: Tensor, weights: Tensor) -> Tensor:
    """Return 1, or NaN if the check ``[G]`` of any group with a weight is not finite.

    A loss may be infinite although its gradient is finite. Multiplied by NaN, the gradient becomes
    NaN on every rank, and no rank updates. This does not synchronize with the device.
    """
    return 1 + (torch.where(weights > 0, checks, 0) * 0).sum()


def _non_finite_groups(gradients: RankGradients, checks: Sequence[Tensor]) -> list[int]:
    """Return the groups of all ranks whose check ``[G]`` is not finite."""
    mine = [
        int(group)
        for micro_batch, check in zip(gradients.micro_batches, checks, strict=True)
        for group, value in zip(micro_batch.loaded.plan.groups, check.tolist(), strict=True)
        if not math.isfinite(value)
    ]
    return sorted({group for groups in gather_objects(mine) for group in groups})
