"""The traffic between ranks in a training step: bytes of the tensors that pass through collectives.

It follows PyTorch 2.13 (DDP) and DeepSpeed 0.19.8 (``bf16_optimizer.py``, ``stage_1_and_2.py``,
``stage3.py``, ``partitioned_param_coordinator.py``), configured by
``rm_ray.train.deepspeed_config``; ``tests/parity/test_traffic.py`` counts the bytes on real ranks.
The gradient norm and the step's metrics, a few hundred bytes, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rm_ray.estimate.activations import FLOAT32
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.estimate.zero_memory import PERSISTENT
from rm_ray.train.deepspeed_config import BUCKET, LIVE

DDP_BUCKET = 25 * 2**20
"""Bytes of gradients in one of DDP's buckets (``bucket_cap_mb``)."""


@dataclass(frozen=True, kw_only=True)
class Collective:
    """Input or output bytes per rank of a group of collectives."""

    reduced: int = 0
    """All-reduce: summed over all ranks, on each of them."""

    scattered: int = 0
    """Reduce-scatter: summed over all ranks, one shard on each; bytes of the full tensors."""

    gathered: int = 0
    """All-gather from the shards of all ranks; bytes of the full tensors."""

    gathered_near: int = 0
    """All-gather from the shards of the ranks on one machine; bytes of the full tensors."""

    collectives: int = 0

    def __add__(self, other: Collective) -> Collective:
        """Return the sum of both."""
        return Collective(**{name: n + getattr(other, name) for name, n in vars(self).items()})

    def seconds(self, network: Network, ranks: int) -> float:
        """Return the seconds on rings, in which a rank sends (W - 1) / W of each tensor.

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
    """The traffic of a step, by the computation that it overlaps with."""

    forward: tuple[Collective, ...]
    """During the forward pass of each micro-batch."""

    backward: tuple[Collective, ...]
    """During the backward pass of each micro-batch."""

    update: Collective
    """After the last backward pass and after the update, overlapping with nothing."""

    def __iter__(self) -> Iterator[Collective]:
        """Yield all collectives in order."""
        yield from (*self.forward, *self.backward, self.update)

    @property
    def total(self) -> Collective:
        """The traffic of the full step."""
        return sum(self, NOTHING)


def traffic_of(
    architecture: Architecture,
    setting: MemorySetting,
    *,
    num_micro_batches: int,
    live: int = LIVE,
) -> Traffic:
    """Return the traffic of one step; ``live`` is ZeRO-3's reuse distance, in elements.

    Stage 0 all-reduces float32 gradients during the last backward pass, even if products are in
    bfloat16. Stage 1 all-reduces after it. Stage 2 all-reduces full gradients during every backward
    pass, and each rank keeps its shard (``allreduce_and_copy_with_multiple_ranks``). Both then
    gather the new weights.
    """
    passes = num_micro_batches
    idle = (NOTHING,) * passes
    if setting.world_size == 1:
        return Traffic(forward=idle, backward=idle, update=NOTHING)
    numbers, size = architecture.num_trained, 2 if setting.is_bf16 else FLOAT32
    if setting.zero_stage == 0:
        count = -(-FLOAT32 * numbers // DDP_BUCKET)
        last = Collective(reduced=FLOAT32 * numbers, collectives=count)
        return Traffic(forward=idle, backward=(*idle[1:], last), update=NOTHING)
    if setting.zero_stage == 3:
        return _zero_3(architecture, setting, size, passes, live)
    gradients = Collective(reduced=size * numbers, collectives=-(-numbers // BUCKET))
    weights = Collective(gathered=size * numbers, collectives=1)
    if setting.zero_stage == 1:
        return Traffic(forward=idle, backward=idle, update=gradients + weights)
    return Traffic(forward=idle, backward=(gradients,) * passes, update=weights)


def _zero_3(
    architecture: Architecture, setting: MemorySetting, size: int, passes: int, live: int
) -> Traffic:
    """Return ZeRO-3's traffic: weights are gathered in the forward pass and again in the backward.

    A weight stays gathered if it is reused before ``live`` elements of other weights are. The way
    from a layer to the end of the model and back covers the elements in between twice, or three
    times with recomputation. This holds for layers of up to half of ``live`` (a billion by default,
    more than a layer of a 70B model); the additional gathers of larger layers are not modelled.
    With a second partition, all passes of a step but the first gather within a machine. A backward
    pass needs only the layers that gradients pass through.
    """
    large = [numbers for numbers in architecture.parameters if numbers > PERSISTENT]
    small = architecture.num_parameters - sum(large)
    kept = min(sum(large), live // (3 if setting.checkpointing else 2))
    reached = sum(large) * architecture.num_reached // architecture.num_layers
    again = max(0, reached - kept)
    first = Collective(gathered=size * sum(large), collectives=len(large))
    near = setting.secondary_size > 0
    repeated = round(len(large) * again / max(sum(large), 1))
    if near:
        later = Collective(gathered_near=size * sum(large), collectives=len(large))
        back = Collective(gathered_near=size * again, collectives=repeated)
    else:
        later, back = first, Collective(gathered=size * again, collectives=repeated)
    buckets = -(-architecture.num_trained // BUCKET)
    back += Collective(scattered=size * architecture.num_trained, collectives=buckets)
    return Traffic(
        forward=(first, *(later,) * (passes - 1)),
        backward=(back,) * passes,
        update=Collective(gathered=size * small, collectives=1 if small else 0),
    )
