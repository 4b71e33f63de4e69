"""The network between GPUs, and how many seconds a collective takes on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rm_ray.estimate.gpu_memory import GIGABYTE

GPUS_PER_NODE = 8
"""GPUs per machine if not given."""

HOP_WITHIN, HOP_BETWEEN = 3.4e-6, 14e-6
"""Seconds per ring hop over NVLink and over a network, used unless latency is measured (NCCL's
``src/graph/tuning.cc``, ``hwLat``: ring, Simple)."""

WITHIN_NODE, BETWEEN_NODES = 450 * GIGABYTE, 50 * GIGABYTE
"""Assumed line rates per GPU in bytes per second: an H100's NVLink (NVIDIA's data sheet) and a 400
Gbit/s network card."""

LINE_SHARE = 0.7
"""Share of an assumed line rate that large messages reach: NCCL's bus bandwidth usually reaches 0.6
to 0.8 of it."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """What each GPU can send, in bytes per second, while receiving at the same rate."""

    within_node: float
    """To other GPUs of the same machine (NVLink, PCIe)."""

    between_nodes: float
    """To other machines: a machine's network bandwidth divided by its GPUs."""

    gpus_per_node: int = GPUS_PER_NODE

    latency: float | None = None
    """Measured seconds of the smallest all-reduce; None uses the sum of its ring's hops."""

    def __post_init__(self) -> None:
        for name in ("within_node", "between_nodes"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be above 0 bytes/s, got {value}")
        if self.gpus_per_node < 1:
            raise ValueError(f"gpus_per_node must be at least 1, got {self.gpus_per_node}")
        if self.latency is not None and not (self.latency >= 0 and math.isfinite(self.latency)):
            raise ValueError(f"latency must be at least 0 seconds, got {self.latency}")

    @classmethod
    def assumed(cls, *, gpus_per_node: int = GPUS_PER_NODE) -> Network:
        """Return the default network, used if none is given or measured."""
        return cls(
            within_node=LINE_SHARE * WITHIN_NODE,
            between_nodes=LINE_SHARE * BETWEEN_NODES,
            gpus_per_node=gpus_per_node,
        )

    @classmethod
    def measured(
        cls,
        *,
        world_size: int,
        gpus_per_node: int,
        bus_bandwidth: float,
        within_node: float | None = None,
        latency: float | None = None,
    ) -> Network:
        """Return the network on which all ranks reach a bus bandwidth, in bytes per second.

        Bus bandwidth is what each rank sends in a ring, 2 (W - 1) / W times the bytes of an
        all-reduce, over its seconds. If the ring crosses machines, all ranks of a machine share the
        crossing.
        """
        inside = bus_bandwidth if within_node is None else within_node
        crosses = world_size > gpus_per_node
        cards = _fewest(world_size, gpus_per_node)
        between = bus_bandwidth / cards if crosses else inside
        return cls(
            within_node=inside,
            between_nodes=between,
            gpus_per_node=gpus_per_node,
            latency=latency,
        )

    def bus_bandwidth(self, ranks: int) -> float:
        """Return what each rank sends in a ring over ``ranks`` neighbours, in bytes per second.

        NCCL builds one ring per network card, and each leaves the machine at a different GPU:
        together, a machine's cards carry what one NVLink carries inside. The machine with the
        fewest ranks has the fewest cards.
        """
        if ranks <= self.gpus_per_node:
            return self.within_node
        cards = _fewest(ranks, self.gpus_per_node)
        return min(self.within_node, cards * self.between_nodes)

    def round(self, ranks: int) -> float:
        """Return the latency of a ring's W - 1 hops, in seconds.

        That is one gather or scatter; an all-reduce goes round twice. If ranks fill machines one
        by one, M machines make M - 1 hops cross the network.
        """
        if self.latency is not None:
            return self.latency / 2
        crossings = -(-ranks // self.gpus_per_node) - 1
        return crossings * HOP_BETWEEN + (ranks - 1 - crossings) * HOP_WITHIN

    def seconds(self, sent: float, *, ranks: int, collectives: int = 1) -> float:
        """Return how many seconds collectives take in which each rank sends ``sent`` bytes in all.

        Each goes round the ring once.
        """
        if ranks == 1:
            return 0.0
        return sent / self.bus_bandwidth(ranks) + collectives * self.round(ranks)


def _fewest(ranks: int, gpus_per_node: int) -> int:
    """Return the ranks on the emptiest machine if ranks fill machines one by one."""
    return ranks % gpus_per_node or gpus_per_node
