"""How long a step takes, predicted: its arithmetic, and what of its traffic nothing hides.

The ranks wait for one another in every exchange, so that a micro-batch takes as long as that of the
slowest rank. Left out are the update, the loss, kernels' launches and whatever else is no product
of matrices, except for what the assumed or measured speed of the arithmetic holds of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.data.plan import Plan
from rm_ray.model.flops import BACKWARD, ModelFlops
from rm_ray.preflight.architecture import Architecture
from rm_ray.preflight.memory import MemorySetting
from rm_ray.preflight.network import Network
from rm_ray.preflight.traffic import traffic_of

TERA = 10**12

GPU_PEAK = 989 * TERA
"""FLOP/s of an H100 SXM in bfloat16, dense (NVIDIA's data sheet)."""

COMPUTE_SHARE = 0.4
"""Of the peak in forward and backward passes, exchange left out, where none was measured: an
assumption."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How fast a GPU's arithmetic is."""

    peak: float
    """FLOP/s of the data sheet, to which utilisation is related."""

    reached: float
    """FLOP/s of forward and backward passes by themselves."""

    source: str
    """How that is known."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The arithmetic of some steps: FLOPs of forward and backward passes that pairs need."""

    slowest: tuple[tuple[float, ...], ...]
    """Of each step, for each micro-batch, those of the rank with the most."""

    total: float
    """Of all pairs of these steps."""

    tokens: int
    """Distinct tokens of all pairs of these steps."""

    @classmethod
    def of(cls, plan: Plan, flops: ModelFlops, *, world_size: int, most_steps: int) -> Load:
        """Look at so many steps of the first epoch."""
        num_steps = min(plan.steps.per_epoch, plan.steps.total)
        sampled = np.unique(np.linspace(0, num_steps - 1, min(most_steps, num_steps)).round())
        slowest, total, tokens = [], 0.0, 0
        for step in sampled.astype(int).tolist():
            pairs = plan.pairs_of_step(step)
            lengths = plan.lengths[pairs]
            each = flops.training(lengths)
            ranks = plan.spread(pairs, world_size)
            slowest.append(
                tuple(
                    max(float(each[members].sum()) for members, _ in position)
                    for position in zip(*ranks, strict=True)
                )
            )
            total += float(each.sum())
            tokens += int(lengths.distinct.sum())
        return cls(slowest=tuple(slowest), total=total, tokens=tokens)

    @property
    def num_steps(self) -> int:
        """Steps looked at."""
        return len(self.slowest)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step on average, and how much of the GPUs' peak is progress."""

    compute: float
    """Forward and backward passes, activations computed again included."""

    exposed: float
    """Traffic during which nothing is computed."""

    traffic: float
    """All traffic, hidden or not."""

    utilisation: float
    """Model FLOPs over those of the peak (arXiv:2204.02311, p. 65)."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exposed

    def hours(self, num_steps: int) -> float:
        """Return the hours of a run of so many steps; start, evaluation, checkpoints on top."""
        return self.seconds * num_steps / 3600


def predict(
    load: Load,
    architecture: Architecture,
    setting: MemorySetting,
    *,
    compute: Compute,
    network: Network,
) -> StepTime:
    """Return what a step takes.

    What is exchanged beside a pass is hidden as far as the pass is long; recomputation lengthens
    the backward pass by a forward pass.
    """
    ranks = setting.world_size
    computed = exposed = travelled = 0.0
    for flops in load.slowest:
        traffic = traffic_of(architecture, setting, num_micro_batches=len(flops))
        travelled += sum(exchange.seconds(network, ranks) for exchange in traffic)
        exposed += traffic.update.seconds(network, ranks)
        for i, needed in enumerate(flops):
            forward = needed / (1 + BACKWARD) / compute.reached
            backward = forward * (BACKWARD + setting.checkpointing)
            computed += forward + backward
            exposed += max(0.0, traffic.forward[i].seconds(network, ranks) - forward)
            exposed += max(0.0, traffic.backward[i].seconds(network, ranks) - backward)
    steps, seconds = load.num_steps, computed + exposed
    return StepTime(
        compute=computed / steps,
        exposed=exposed / steps,
        traffic=travelled / steps,
        utilisation=load.total / (seconds * ranks * compute.peak),
    )


def sizes_around(num_workers: int, *, smallest: int = 8) -> Sequence[int]:
    """Return the numbers of GPUs of a curve: doubled from one machine to twice as many as asked."""
    sizes = {num_workers, 2 * num_workers}
    size = smallest
    while size < num_workers:
        sizes.add(size)
        size *= 2
    return sorted(sizes)
