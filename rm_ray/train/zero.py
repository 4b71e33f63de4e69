"""DeepSpeed's settings: the few numbers of ZeRO that are not left at its defaults, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_ray.config.train_config import ClusterConfig, OptimizerConfig

BUCKET = 200_000_000
"""Numbers of gradients that are exchanged at a time, two of them at once (``reduce_bucket_size``).

What is exchanged last has no arithmetic beside it: at 400 MB and 50 GB/s a GPU 8 ms, where
DeepSpeed's half a billion cost 20 of a step's 300. Over 64 GPUs 400 MB are still messages of 6 MB,
whose latency (0.3 ms a round, ``preflight/network.py``) is less than a tenth. A tensor that is
larger, as the embedding of 8B (0.5e9) and the feed-forward of 70B (0.23e9), is exchanged by itself.
"""

LIVE = 2_000_000_000
"""Numbers of gathered weights that ZeRO-3 keeps for their next use (``stage3_max_reuse_distance``),
and up to which it gathers ahead (``stage3_max_live_parameters``).

With recomputed activations a layer is computed and then gone back through, which is two layers
of distance: 1.7e9 at 70B (0.86e9 a layer). DeepSpeed's 1e9 would gather the attention's weights a
third time, and leave room for no layer ahead of the one at hand. In bfloat16 it is at most 4 GB.
"""

# DeepSpeed's own are right for the rest. It prefetches 5e7 numbers whenever a module begins
# (stage3_prefetch_bucket_size), at least a tensor, and so runs ahead until LIVE is reached. Tensors
# of up to 1e5 numbers (stage3_param_persistence_threshold) stay whole: the norms, 4,096 and 8,192,
# and nothing else at either size. A shard is updated 1e9 numbers at a time (sub_group_size): once
# at 8B on 8 GPUs, twice at 70B on 64.


def deepspeed_settings(
    cluster: ClusterConfig,
    optimizer: OptimizerConfig,
    *,
    bf16: bool,
    on_gpu: bool,
    secondary_size: int = 1,
) -> dict[str, Any]:
    """Return what DeepSpeed is configured with.

    Accumulation is 1: the training step scales the loss and sets the boundary. The weights have a
    second partition over each ``secondary_size`` ranks where that is more than 1.
    """
    zero: dict[str, Any] = {"stage": cluster.stage, "reduce_bucket_size": BUCKET}
    if on_gpu:  # gradients are exchanged while the backward pass goes on; stage 3 always does
        zero["overlap_comm"] = True
    if cluster.stage == 3:
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
