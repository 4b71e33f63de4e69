"""DeepSpeed's settings, and the reasons for those that differ from its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.optimizer import OptimizerConfig

BUCKET = 200_000_000
"""Gradient elements per exchange, with two buckets in flight (``reduce_bucket_size``).

The last exchange overlaps with no computation: 400 MB take 8 ms at 50 GB/s per GPU, while
DeepSpeed's default of 5e8 takes 20 ms of a 300 ms step. Over 64 GPUs, 400 MB still mean messages of
6 MB, whose latency (0.3 ms per round, ``estimate/network.py``) is below a tenth. Larger tensors,
such as the embedding of 8B (0.5e9) and the feed-forward of 70B (0.23e9), are exchanged alone.
"""

LIVE = 2_000_000_000
"""Gathered weight elements that ZeRO-3 keeps for their next use (``stage3_max_reuse_distance``),
and up to which it gathers ahead (``stage3_max_live_parameters``).

With activation recomputation, each layer runs forward and then backward, a distance of two layers:
1.7e9 at 70B (0.86e9 per layer). DeepSpeed's default of 1e9 would gather the attention weights a
third time, and could not gather the next layer ahead. In bfloat16, this takes at most 4 GB.
"""

# DeepSpeed's defaults suit the rest. It prefetches 5e7 elements (at least one tensor) whenever a
# module begins (stage3_prefetch_bucket_size), and so runs ahead up to LIVE. Tensors of up to 1e5
# elements stay gathered (stage3_param_persistence_threshold): at 8B and 70B, only the norms, of
# 4,096 and 8,192. A shard is updated 1e9 elements at a time (sub_group_size): once at 8B on 8 GPUs,
# twice at 70B on 64.


def deepspeed_settings(
    cluster: ResolvedCluster,
    optimizer: OptimizerConfig,
    *,
    bf16: bool,
    on_gpu: bool,
    secondary_size: int = 1,
) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    Accumulation is 1, since the training step scales the loss and sets the boundary itself. If
    ``secondary_size`` is above 1, weights get a second partition over groups of that many ranks.
    """
    zero: dict[str, Any] = {"stage": cluster.zero_stage, "reduce_bucket_size": BUCKET}
    if on_gpu:  # exchange gradients during the backward pass, as stage 3 always does
        zero["overlap_comm"] = True
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
    """Return the number of ranks that a second partition of the weights spans; 1 for none.

    ``nodes`` is the machine of each rank. DeepSpeed groups ranks in order, so a machine's ranks
    must be consecutive, and every machine must have the same number. On a single machine, the
    first partition already stays within it.
    """
    size = nodes.count(nodes[0])
    blocks = [set(nodes[i : i + size]) for i in range(0, len(nodes), size)]
    is_divisible = len(nodes) % size == 0 and all(len(block) == 1 for block in blocks)
    is_useful = 1 < size < len(nodes) and len(set(nodes)) == len(blocks)
    return size if is_divisible and is_useful else 1
