"""DeepSpeed's settings: the few numbers of ZeRO that are not left at its defaults, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_ray.config import ClusterConfig, OptimizerConfig

LIVE = 1_000_000_000
"""Numbers of gathered weights that ZeRO-3 keeps for their next use, and that it gathers ahead."""


def deepspeed_settings(
    cluster: ClusterConfig,
    optimizer: OptimizerConfig,
    *,
    bf16: bool,
    secondary_size: int = 1,
) -> dict[str, Any]:
    """Return what DeepSpeed is configured with.

    Accumulation is 1: the training step scales the loss and sets the boundary. The weights have a
    second partition over each ``secondary_size`` ranks where that is more than 1.
    """
    zero: dict[str, Any] = {"stage": cluster.zero_stage}
    if cluster.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        zero["zero_hpz_partition_size"] = secondary_size
        zero["stage3_max_reuse_distance"] = zero["stage3_max_live_parameters"] = LIVE
    if cluster.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if cluster.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "gradient_clipping": optimizer.max_grad_norm,
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def find_secondary_size(nodes: Sequence[int]) -> int:
    """Return how many ranks a second partition of the weights spans, 1 where there can be none.

    ``nodes`` names the machine of each rank. DeepSpeed takes ranks in order, so those of a machine
    must follow one another, and every machine must have as many. On a single machine the first
    partition lies within it already.
    """
    size = nodes.count(nodes[0])
    blocks = [set(nodes[i : i + size]) for i in range(0, len(nodes), size)]
    are_apart = len(nodes) % size == 0 and all(len(block) == 1 for block in blocks)
    is_of_use = 1 < size < len(nodes) and len(set(nodes)) == len(blocks)
    return size if are_apart and is_of_use else 1
