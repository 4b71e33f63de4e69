"""Placement of a run's actors."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_the_driver() -> dict[str, Any]:
    """Return options for an actor that runs on the driver's machine, or elsewhere if it drains.

    The actor requests one byte of memory: Ray 2.60 ignores the affinity of actors that request
    nothing, and the actor would then be lost with a machine other than the driver's.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return {"num_cpus": 0, "memory": 1, "scheduling_strategy": here}
