"""Memory at every stage, computed by hand for an 8B Llama."""

from dataclasses import replace

import pytest
from shapes import ON_64_GPUS, ROW, llama_8b

from rm_ray.estimate import zero_memory
from rm_ray.estimate.architecture import Tuning
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.moments import MemoryEstimate, Moment

EIGHT_BILLION = llama_8b()
EMBEDDING = EIGHT_BILLION.parameters[0]
N = EIGHT_BILLION.num_parameters


def moment(estimated: MemoryEstimate, name: str) -> Moment:
    return next(found for found in estimated.moments if found.name == name)


def test_zero_3_on_64_gpus_by_hand():
    estimated = estimate(EIGHT_BILLION, ROW, ON_64_GPUS)
    n, norms = N // 64, (64 + 1 + 1) * 4_096  # small tensors: norms of layers, the last, the head
    backward = moment(estimated, "backward")
    gathered = 2_000_000_000 + 4_096 * 14_336
    assert backward.weights == 2 * (n + norms + gathered)
    assert backward.optimizer == 12 * n
    assert backward.gradients == 4 * n + 2 * 4_096 * 14_336
    assert backward.buffers == 2 * 200_000_000
    # Bytes per position: the inputs of 31 layers; the last layer's norm input and result, keys and
    # values; and the recomputed layer: two such norms, three times the feed-forward, queries and
    # output, keys and values, and one float32 per head.
    between = 16_384 * 4_096 * 2
    keys_and_values = 2 * 2 * 1_024 * 20_000
    last = 16_384 * 2 * 4_096 * 2 + keys_and_values
    layer = 16_384 * 2 * (4 * 4_096 + 3 * 14_336 + 2 * 4_096) + keys_and_values + 4 * 32 * 16_384
    angles, working = 2 * 128 * 2 * 16_384, 16_384 * 2 * (2 * 14_336 + 4_096)
    assert backward.activations == 31 * between + angles + layer + working
    held = moment(estimated, "end of forward").activations
    assert held == 31 * between + angles + last
    assert moment(estimated, "update").buffers == 2 * 200_000_000 + 4 * n
    assert moment(estimated, "build").host == 4 * EMBEDDING == estimated.machine
    drawn = estimate(EIGHT_BILLION, ROW, replace(ON_64_GPUS, from_files=False))
    assert drawn.machine == 4 * N
    # Each weight is whole on the GPU only while it is sharded.
    assert moment(estimated, "start").device == 2 * n + 2 * EMBEDDING
    assert estimated.peak.name == "backward"


def test_ddp_by_hand():
    setting = replace(ON_64_GPUS, zero_stage=0, dtype="float32", attention="repeated", liger=False)
    update = moment(estimate(EIGHT_BILLION, ROW, setting), "update")
    assert (update.weights, update.gradients, update.optimizer) == (4 * N, 4 * N, 8 * N)
    assert update.buffers == 0  # gradients are views of buckets, and AdamW is fused
    on_cpu = moment(estimate(EIGHT_BILLION, ROW, replace(setting, on_gpu=False)), "update")
    assert on_cpu.buffers == 2 * 4 * EMBEDDING


@pytest.mark.parametrize(("stage", "gradients"), [(1, 4 * N + 2 * N), (2, 4 * (N // 8))])
def test_sharded_optimizers_by_hand(stage, gradients):
    setting = replace(ON_64_GPUS, zero_stage=stage, world_size=8)
    update = moment(estimate(EIGHT_BILLION, ROW, setting), "update")
    n = N // 8
    assert (update.weights, update.gradients, update.optimizer) == (2 * N, gradients, 12 * n)
    assert update.buffers == 0
    backward = moment(estimate(EIGHT_BILLION, ROW, setting), "backward")
    # Stage 2 fills one bucket while exchanging another; stage 1 has none in bfloat16.
    assert backward.buffers == (2 * 2 * 200_000_000 if stage == 2 else 0)


def test_a_second_partition_stores_the_weights_once_more_on_each_machine():
    once = estimate(EIGHT_BILLION, ROW, ON_64_GPUS)
    twice = estimate(EIGHT_BILLION, ROW, replace(ON_64_GPUS, secondary_size=8))
    assert twice.part("weights") - once.part("weights") == 2 * N // 8
    assert twice.device - once.device == 2 * N // 8


LAST_TWO = Tuning(trained=(4_096,) * 2, num_layers=2, in_matrices=0)


def test_layers_below_the_trained_ones_pass_before_those_keep_anything():
    tuned = replace(EIGHT_BILLION, tuning=LAST_TWO)
    setting = replace(ON_64_GPUS, checkpointing=False)
    start, end = (
        moment(estimate(tuned, ROW, setting), f"{when} of forward") for when in ("start", "end")
    )
    # A frozen layer: its branches and their product, the normed states and the stream.
    assert start.activations == 16_384 * (3 * 14_336 + 2 * 4_096) * 2
    assert start.buffers - end.buffers == 0  # 50 million elements, and two layers have more
    small = replace(tuned, layer_parameters=1_000_000)
    end_of_small = moment(estimate(small, ROW, setting), "end of forward")
    assert end.buffers - end_of_small.buffers == 2 * (4_096 * 14_336 - 2 * 1_000_000)
    adapted = replace(tuned, tuning=replace(LAST_TWO, num_layers=32))  # no layer is below
    for architecture in (adapted, EIGHT_BILLION):
        assert moment(estimate(architecture, ROW, setting), "start of forward").activations == 0


def test_a_trimmed_last_layer_has_filled_a_bucket_when_activations_peak():
    tuned = replace(EIGHT_BILLION, tuning=LAST_TWO)
    setting = replace(ON_64_GPUS, zero_stage=2, world_size=8, on_gpu=False)
    for architecture, filled in ((EIGHT_BILLION, EIGHT_BILLION.layer_parameters), (tuned, 4_096)):
        backward = moment(estimate(architecture, ROW, setting), "backward")
        assert backward.buffers == 2 * min(filled, 200_000_000)
    untrimmed = estimate(replace(tuned, is_trimmable=False), ROW, setting)
    assert moment(untrimmed, "backward").buffers == 0


def test_offload_moves_the_optimizer_to_the_host():
    setting = replace(ON_64_GPUS, world_size=8)
    here = estimate(EIGHT_BILLION, ROW, setting)
    there = estimate(EIGHT_BILLION, ROW, replace(setting, offload="optimizer"))
    n = N // 8
    assert here.part("optimizer") == 12 * n
    assert there.part("optimizer") == there.part("gradients") - 2 * 4_096 * 14_336 == 0
    assert moment(there, "update").host == (4 + 8 + 4 + 4) * n
    everything = estimate(EIGHT_BILLION, ROW, replace(setting, offload="all"))
    assert moment(everything, "update").host == (4 + 8 + 4 + 4 + 2) * n
    assert there.part("weights") - everything.part("weights") == 2 * n


def test_the_constants_match_deepspeed_s_defaults():
    from deepspeed.runtime.engine import MEMORY_OPT_ALLREDUCE_SIZE
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = DeepSpeedZeroConfig(stage=3)
    assert known.prefetch_bucket_size == zero_memory.PREFETCH
    assert MEMORY_OPT_ALLREDUCE_SIZE == zero_memory.ALL_REDUCE
    assert known.param_persistence_threshold == zero_memory.PERSISTENT
    assert known.sub_group_size == zero_memory.SUB_GROUP
