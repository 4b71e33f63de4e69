"""Placement of a run's actors."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_the_workers(num_workers: int, *, num_cpus: int, use_gpu: bool) -> dict[str, Any]:
    """Return options for an actor that runs on resources which the workers leave free.

    With ``use_gpu`` it takes a GPU if more are free than workers, who are about to claim one each.
    """
    free = ray.available_resources().get("GPU", 0) if use_gpu else 0
    return {"num_cpus": num_cpus, "num_gpus": int(free >= num_workers + 1)}


def beside_the_driver() -> dict[str, Any]:
    """Return options for an actor that runs on the driver's machine, or elsewhere if it drains.

    The actor requests one byte of memory: Ray 2.60 ignores the affinity of actors that request
    nothing, and the actor would then be lost with a machine other than the driver's.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return {"num_cpus": 0, "memory": 1, "scheduling_strategy": here}
