"""What the ranks of a training send one another in a step: pure arithmetic.

Counted are the bytes of the tensors that go through collectives. They follow PyTorch 2.13 (DDP) and
DeepSpeed 0.19.8 (``bf16_optimizer.py``, ``stage_1_and_2.py``, ``stage3.py``,
``partitioned_param_coordinator.py``) as ``rm_ray.train.zero`` configures it, and
``tests/parity/test_traffic.py`` counts them on real ranks. The norm of the gradient and the step's
metrics are left out: some hundred bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory import FLOAT32, PERSISTENT, MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.train.zero import BUCKET, LIVE

DDP_BUCKET = 25 * 2**20
"""Bytes of gradients that DDP exchanges at a time (its ``bucket_cap_mb``)."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Bytes of the tensors that some collectives take in or give out, on each rank."""

    reduced: int = 0
    """Added up over all ranks, on each of them (all-reduce)."""

    scattered: int = 0
    """Added up over all ranks, a shard on each (reduce-scatter); bytes of the whole."""

    gathered: int = 0
    """Put together from the shards of all ranks (all-gather); bytes of the whole."""

    gathered_near: int = 0
    """Put together from the shards of the ranks of a machine."""

    collectives: int = 0

    def __add__(self, other: Collective) -> Collective:
        """Return both together."""
        return Collective(**{name: n + getattr(other, name) for name, n in vars(self).items()})

    def seconds(self, network: Network, ranks: int) -> float:
        """Return how long it takes in rings, where a rank sends (W - 1) / W of each tensor.

        An all-reduce is a reduce-scatter and an all-gather (doi:10.1016/j.jpdc.2008.09.002).
        """
        near = min(ranks, network.gpus_per_node)
        everywhere = (2 * self.reduced + self.scattered + self.gathered) * (ranks - 1) / ranks
        within = self.gathered_near * (near - 1) / near
        return network.seconds(
            everywhere, ranks=ranks, collectives=self.collectives
        ) + network.seconds(within, ranks=near, collectives=0)


NOTHING = Collective()


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What is exchanged in a step, by what is computed meanwhile."""

    forward: tuple[Collective, ...]
    """Beside the forward pass of each micro-batch."""

    backward: tuple[Collective, ...]
    """Beside the backward pass of each micro-batch."""

    update: Collective
    """With nothing beside it: after the last backward pass, and after the update."""

    def __iter__(self) -> Iterator[Collective]:
        """Go through all of them."""
        yield from (*self.forward, *self.backward, self.update)

    @property
    def total(self) -> Collective:
        """All of a step together."""
        return sum(self, NOTHING)


def traffic_of(
    architecture: Architecture,
    setting: MemorySetting,
    *,
    num_micro_batches: int,
    live: int = LIVE,
) -> Traffic:
    """Return what a step of so many micro-batches exchanges; ``live`` is ZeRO-3's reuse distance.

    Stage 0 adds up float32 gradients in the last backward pass, also where products are in
    bfloat16. Stage 1 does so after it. Stage 2 does after every backward pass, and adds up whole
    gradients on all ranks, of which each keeps its shard
    (``allreduce_and_copy_with_multiple_ranks``). Both then gather the new weights.
    """
    passes = num_micro_batches
    idle = (NOTHING,) * passes
    if setting.world_size == 1:
        return Traffic(forward=idle, backward=idle, update=NOTHING)
    numbers, size = architecture.num_parameters, 2 if setting.is_bf16 else FLOAT32
    if setting.zero_stage == 0:
        count = -(-FLOAT32 * numbers // DDP_BUCKET)
        last = Collective(reduced=FLOAT32 * numbers, collectives=count)
        return Traffic(forward=idle, backward=(*idle[1:], last), update=NOTHING)
    if setting.zero_stage == 3:
        return _sharded(architecture, setting, size, passes, live)
    gradients = Collective(reduced=size * numbers, collectives=-(-numbers // BUCKET))
    weights = Collective(gathered=size * numbers, collectives=1)
    if setting.zero_stage == 1:
        return Traffic(forward=idle, backward=idle, update=gradients + weights)
    return Traffic(forward=idle, backward=(gradients,) * passes, update=weights)


def _sharded(
    architecture: Architecture, setting: MemorySetting, size: int, passes: int, live: int
) -> Traffic:
    """ZeRO-3 gathers weights for the forward pass, and what it did not keep for the backward pass.

    A weight is kept where it is used again before so many numbers of others are: from a layer to
    the end of the model and back is twice what lies between, or three times where each layer is
    computed again on the way back. For that nothing is gathered beyond it where a layer has half
    of those numbers at most (with ``LIVE``, a billion, more than one of a 70B model): of larger
    ones, what is gathered twice on the way back is left out. With a second partition all but the
    first pass of a step gathers within a machine.
    """
    large = [numbers for numbers in architecture.parameters if numbers > PERSISTENT]
    small = architecture.num_parameters - sum(large)
    kept = min(sum(large), live // (3 if setting.checkpointing else 2))
    again = sum(large) - kept
    first = Collective(gathered=size * sum(large), collectives=len(large))
    near = setting.secondary_over > 0
    repeated = round(len(large) * again / max(sum(large), 1))
    if near:
        later = Collective(gathered_near=size * sum(large), collectives=len(large))
        back = Collective(gathered_near=size * again, collectives=repeated)
    else:
        later, back = first, Collective(gathered=size * again, collectives=repeated)
    buckets = -(-architecture.num_parameters // BUCKET)
    back += Collective(scattered=size * architecture.num_parameters, collectives=buckets)
    return Traffic(
        forward=(first, *(later,) * (passes - 1)),
        backward=(back,) * passes,
        update=Collective(gathered=size * small, collectives=1 if small else 0),
    )
