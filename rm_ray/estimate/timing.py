"""How long a step takes, predicted: its arithmetic, and what of its traffic nothing hides.

The ranks wait for one another in every exchange, so that a micro-batch takes as long as that of the
slowest rank. Left out are the loss, kernels' launches, ZeRO's work on the host and whatever else is
no product of matrices, except for what the assumed or measured speed of the arithmetic holds of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.batches.plan import Plan
from rm_ray.data.cache.pair_tokens import PairLengths
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory import FLOAT32, MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.estimate.traffic import Collective, traffic_of
from rm_ray.estimate.workload import count_positions
from rm_ray.model.flops import BACKWARD, ModelFlops
from rm_ray.train.zero import BUCKET

TERA = 10**12

GPU_PEAK = 989 * TERA
"""FLOP/s of an H100 SXM in bfloat16, dense (NVIDIA's data sheet)."""

MEMORY_BANDWIDTH = 3.0e12
"""Bytes per second of an H100's memory in the update: an assumption (data sheet: 3.35e12)."""

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

    is_measured: bool = False
    """Whether that was measured in the run's layout, so that its seconds hold the padding's."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The arithmetic of some steps: FLOPs of forward and backward passes."""

    slowest: tuple[tuple[float, ...], ...]
    """Of each step, for each micro-batch, those of the rank with the most."""

    total: float
    """Those that the pairs of these steps need, padding left out."""

    tokens: int
    """Distinct tokens of all pairs of these steps."""

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
        """Look at so many steps of the first epoch.

        Where it ``counts_padding``, the slowest rank's FLOPs are those needed times the positions
        computed for each distinct one.
        """

        def padding(lengths: PairLengths) -> float:
            positions = count_positions(lengths, plan.settings.layout)
            return positions / int(lengths.distinct.sum()) if counts_padding else 1.0

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
                    max(
                        float(each[members].sum()) * padding(lengths[members])
                        for members, _ in position
                    )
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

    update: float
    """The optimizer's, which nothing is beside."""

    exposed: float
    """Traffic during which nothing is computed."""

    traffic: float
    """All traffic, hidden or not."""

    utilisation: float
    """Model FLOPs over those of the peak (arXiv:2204.02311, p. 65)."""

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.update + self.exposed

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
    the backward pass by a forward pass. The update is on top of a measured speed too, which does
    not hold it (``measure_speed``).
    """
    update = update_seconds(architecture.num_parameters, setting)
    computed = exposed = travelled = 0.0
    for flops in load.slowest:
        traffic = traffic_of(architecture, setting, num_micro_batches=len(flops))
        travelled += sum(_seconds(exchange, setting, network) for exchange in traffic)
        exposed += _seconds(traffic.update, setting, network)
        for i, needed in enumerate(flops):
            forward = needed / (1 + BACKWARD) / compute.reached
            backward = forward * (BACKWARD + setting.checkpointing)
            computed += forward + backward
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


def update_seconds(numbers: int, setting: MemorySetting) -> float:
    """Return the seconds of clipping and AdamW on so many weights, bound by the memory's bandwidth.

    AdamW moves 28 bytes a weight in float32: it reads weight, gradient and two moments, and writes
    all but the gradient. Stage 0 does so on every rank, and moves 16 more: 4 for the norm, 8 to
    clip, 4 to clear the gradients. ZeRO updates a shard, and with bfloat16 reads the new weights
    (4) and writes them as products take them (2).
    """
    if setting.zero_stage == 0:
        moved = float(28 + 16)
    else:
        moved = (28 + (6 if setting.is_bf16 else 0)) / setting.world_size
    return numbers * moved / MEMORY_BANDWIDTH


def _seconds(exchange: Collective, setting: MemorySetting, network: Network) -> float:
    """Return how long an exchange takes, each collective with the latency of its own ring.

    ``Exchange.seconds`` lets each go round all ranks once. An all-reduce goes round twice, and
    what is gathered within a machine stays there; of the collectives beside it there is one for
    each bucket of gradients (``traffic_of``).
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
    """Return the numbers of GPUs of a curve: doubled from one machine to twice as many as asked."""
    sizes = {num_workers, 2 * num_workers}
    size = smallest
    while size < num_workers:
        sizes.add(size)
        size *= 2
    return sorted(sizes)
