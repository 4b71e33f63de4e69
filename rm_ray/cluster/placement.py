"""Where actors of a run are put."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_the_driver() -> dict[str, Any]:
    """Return options of an actor that runs on the driver's machine, or elsewhere if that closes.

    It asks for a byte, as Ray puts an actor that asks for nothing on any machine, whatever it
    prefers (2.60), and it would be lost with a machine that is not the driver's.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return {"num_cpus": 0, "memory": 1, "scheduling_strategy": here}
