"""The predicted time of a step: its arithmetic, and the traffic that arithmetic does not hide.

Ranks wait for each other in every exchange, so a micro-batch takes as long as the slowest rank's.
The loss, kernel launches, ZeRO's work on the host and everything else that is not a matrix product
count only as far as the assumed or measured compute speed includes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.batches.plan import Plan
from rm_ray.data.cache.group_tokens import GroupLengths, count_positions
from rm_ray.estimate.activations import FLOAT32
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.gpu_speed import Compute
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.estimate.traffic import Collective, traffic_of
from rm_ray.model.flops import BACKWARD, ModelFlops
from rm_ray.train.deepspeed_config import BUCKET

MEMORY_BANDWIDTH = 3.0e12
"""Assumed bytes per second of an H100's memory in the update (data sheet: 3.35e12)."""

HOST_BANDWIDTH = 50e9
"""Assumed bytes per second between a GPU and pinned host memory (PCIe 5.0 x16: 63e9)."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """FLOPs of the forward and backward passes of sampled steps."""

    slowest: tuple[tuple[float, ...], ...]
    """FLOPs of the busiest rank, per step and micro-batch."""

    total: float
    """FLOPs that the pairs of these steps need, without padding."""

    tokens: int
    """Distinct tokens of all pairs of these steps."""

    forward: float = 1 / (1 + BACKWARD)
    """Share of these FLOPs in forward passes; a third unless weights are frozen."""

    repeated: float = 1 / (1 + BACKWARD)
    """FLOPs that recomputation adds, as a share of these: a forward pass of the layers that
    gradients pass through."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        flops: ModelFlops,
        *,
        world_size: int,
        most_steps: int,
        counts_padding: bool = True,
    ) -> Load:
        """Sample up to ``most_steps`` steps of the first epoch.

        With ``counts_padding``, the slowest rank's FLOPs are the needed ones times the computed
        positions per distinct token.
        """

        def padding(lengths: GroupLengths) -> float:
            positions = count_positions(lengths, plan.settings.layout)
            return positions / int(lengths.distinct.sum()) if counts_padding else 1.0

        num_steps = min(plan.steps.per_epoch, plan.steps.total)
        sampled = np.unique(np.linspace(0, num_steps - 1, min(most_steps, num_steps)).round())
        slowest, total, tokens, forward, repeated = [], 0.0, 0, 0.0, 0.0
        for step in sampled.astype(int).tolist():
            groups = plan.groups_of_step(step)
            lengths = plan.lengths[groups]
            each = flops.training(lengths)
            ranks = plan.spread(groups, world_size)
            slowest.append(
                tuple(
                    max(
                        float(each[members].sum()) * padding(lengths[members])
                        for members, _ in position
                    )
                    for position in zip(*ranks, strict=True)
                )
            )
            total += float(each.sum())
            forward += float(flops.forward(lengths).sum())
            repeated += float(flops.reached.forward(lengths).sum())
            tokens += int(lengths.distinct.sum())
        return cls(
            slowest=tuple(slowest),
            total=total,
            tokens=tokens,
            forward=forward / total,
            repeated=repeated / total,
        )

    @property
    def num_steps(self) -> int:
        """Steps sampled."""
        return len(self.slowest)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Average seconds of a step, and its model FLOPs utilisation (MFU)."""

    compute: float
    """Forward and backward passes, recomputed activations included."""

    update: float
    """The optimizer step, which overlaps with nothing."""

    exposed: float
    """Traffic that no computation hides."""

    traffic: float
    """All traffic, hidden or not."""

    utilisation: float
    """MFU: model FLOPs over peak FLOPs (arXiv:2204.02311, p. 65)."""

    @property
    def seconds(self) -> float:
        """The full step."""
        return self.compute + self.update + self.exposed

    def hours(self, num_steps: int) -> float:
        """Return the hours of ``num_steps`` steps, without startup, evaluation and checkpoints."""
        return self.seconds * num_steps / 3600


def predict(
    load: Load,
    architecture: Architecture,
    setting: MemorySetting,
    *,
    compute: Compute,
    network: Network,
) -> StepTime:
    """Predict the time of a step.

    Traffic that overlaps with a pass is hidden for as long as the pass takes; recomputation adds a
    forward pass to the backward pass. The update is always added, because a measured speed does not
    include it (``measure_speed``). Inputs of layers travel to the host and back on the compute
    stream, so nothing hides them.
    """
    update = update_seconds(architecture.num_trained, setting)
    computed = exposed = travelled = 0.0
    for flops in load.slowest:
        traffic = traffic_of(architecture, setting, num_micro_batches=len(flops))
        travelled += sum(_seconds(exchange, setting, network) for exchange in traffic)
        exposed += _seconds(traffic.update, setting, network)
        for i, needed in enumerate(flops):
            forward = needed * load.forward / compute.reached
            again = needed * load.repeated / compute.reached if setting.checkpointing else 0.0
            backward = needed / compute.reached - forward + again
            computed += forward + backward
            if setting.activation_offloading:
                copying = _copying_seconds(load, needed, architecture, setting)
                travelled, exposed = travelled + copying, exposed + copying
            exposed += max(0.0, _seconds(traffic.forward[i], setting, network) - forward)
            exposed += max(0.0, _seconds(traffic.backward[i], setting, network) - backward)
    steps = load.num_steps
    seconds = computed + exposed + steps * update
    return StepTime(
        compute=computed / steps,
        update=update,
        exposed=exposed / steps,
        traffic=travelled / steps,
        utilisation=load.total / (seconds * setting.world_size * compute.peak),
    )


def _copying_seconds(
    load: Load, flops: float, architecture: Architecture, setting: MemorySetting
) -> float:
    """Return the seconds to copy the inputs of all layers to the host and back.

    A forward pass of ``flops`` is taken to have as many tokens per FLOP as all of them.
    """
    tokens = load.tokens * flops / load.total
    layers = architecture.num_layers - architecture.trims(setting.layout)
    size = tokens * layers * architecture.hidden * setting.arithmetic.stream
    return 2 * size / HOST_BANDWIDTH


def update_seconds(numbers: int, setting: MemorySetting) -> float:
    """Return the seconds of clipping and AdamW on ``numbers`` weights, bound by memory bandwidth.

    AdamW moves 28 bytes per weight in float32: it reads weight, gradient and two moments, and
    writes all but the gradient. Stage 0 does so on every rank, and moves 16 more: 4 for the norm, 8
    to clip, 4 to zero the gradients. ZeRO updates a shard, and in bfloat16 also reads the new
    weights (4) and writes them in bfloat16 (2).
    """
    if setting.zero_stage == 0:
        moved = float(28 + 16)
    else:
        moved = (28 + (6 if setting.is_bf16 else 0)) / setting.world_size
    return numbers * moved / MEMORY_BANDWIDTH


def _seconds(exchange: Collective, setting: MemorySetting, network: Network) -> float:
    """Return the seconds of an exchange, with each collective's latency on its own ring.

    ``Collective.seconds`` sends every collective round all ranks once. This corrects for
    all-reduces, which go round twice, and for gathers within a machine, which stay there; the other
    collectives of such an exchange are one per bucket of gradients (``traffic_of``).
    """
    ranks, near_ranks = setting.world_size, min(setting.world_size, network.gpus_per_node)
    seconds = exchange.seconds(network, ranks)
    if exchange.reduced:
        again = exchange.collectives - (exchange.gathered > 0)
        seconds += network.seconds(0, ranks=ranks, collectives=again)
    if exchange.gathered_near:
        size = 2 if setting.is_bf16 else FLOAT32
        near = exchange.collectives - -(-exchange.scattered // (size * BUCKET))
        seconds -= near * (network.round(ranks) - network.round(near_ranks))
    return seconds


def sizes_around(num_workers: int, *, smallest: int = 8) -> Sequence[int]:
    """Return the numbers of GPUs to predict: doubling from one machine to ``2 * num_workers``."""
    sizes = {num_workers, 2 * num_workers}
    size = smallest
    while size < num_workers:
        sizes.add(size)
        size *= 2
    return sorted(sizes)
