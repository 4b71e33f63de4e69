"""Memory by hand, and what must hold whatever the sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import LLAMA_8B, classifier_of

from rm_ray.config.train_config import ClusterConfig
from rm_ray.estimate import memory
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory import MemorySetting, alternatives, estimate
from rm_ray.preflight.run_estimate import secondary_over
from rm_ray.train.zero import find_secondary_size

EMBEDDING = 128_256 * 4_096
LAYER = 2 * 4_096**2 + 2 * 4_096 * 1_024 + 3 * 4_096 * 14_336 + 2 * 4_096
N = EMBEDDING + 32 * LAYER + 4_096 + 4_096
"""Numbers of an 8B Llama with a scalar head: 7.5 billion, since it has no output embedding."""

ROW = ForwardPass(positions=16_384, queries=16_384, keys=20_000, masked=0, products=0)

ON_64_GPUS = MemorySetting(
    dtype="bfloat16", zero_stage=3, checkpointing=True, world_size=64, on_gpu=True,
    attention="varlen", liger=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def llama_8b(tmp_path_factory: pytest.TempPathFactory) -> Architecture:
    folder: Path = tmp_path_factory.mktemp("8b")
    return Architecture.of(classifier_of(folder / "config.json", LLAMA_8B))


def moment(estimated: memory.MemoryEstimate, name: str) -> memory.Moment:
    return next(found for found in estimated.moments if found.name == name)


def test_the_sizes_of_an_8b_llama(llama_8b):
    assert llama_8b.num_parameters == N == 7_504_928_768
    assert llama_8b.layer_parameters == LAYER == 218_112_000
    assert llama_8b.largest_in_layer == 4_096 * 14_336
    assert (llama_8b.query_width, llama_8b.key_width, llama_8b.num_heads) == (4_096, 1_024, 32)
    assert llama_8b.is_trimmable


def test_a_tokenizer_with_more_tokens_makes_the_embedding_larger(tmp_path):
    classifier = classifier_of(tmp_path / "config.json", LLAMA_8B | {"num_hidden_layers": 1})
    larger = Architecture.of(classifier, vocab_size=128_257)
    assert larger.parameters[0] == EMBEDDING + 4_096
    assert Architecture.of(classifier, vocab_size=100).parameters[0] == EMBEDDING


def test_zero_3_on_64_gpus_by_hand(llama_8b):
    estimated = estimate(llama_8b, ROW, ON_64_GPUS)
    n, norms = N // 64, (64 + 1 + 1) * 4_096  # small tensors: norms of layers, the last, the head
    backward = moment(estimated, "backward")
    gathered = 2_000_000_000 + 4_096 * 14_336
    assert backward.weights == 2 * (n + norms + gathered)
    assert backward.optimizer == 12 * n
    assert backward.gradients == 4 * n + 2 * 4_096 * 14_336
    assert backward.buffers == 2 * 200_000_000
    # In bytes a position. Of 31 layers the input. Of the last one: a norm's input and result, and
    # its keys and values. Of the layer that is computed again: two such norms, three times the
    # feed-forward, queries and the result, keys and values, and a float32 for each head.
    between = 16_384 * 4_096 * 2
    keys_and_values = 2 * 2 * 1_024 * 20_000
    last = 16_384 * 2 * 4_096 * 2 + keys_and_values
    layer = 16_384 * 2 * (4 * 4_096 + 3 * 14_336 + 2 * 4_096) + keys_and_values + 4 * 32 * 16_384
    angles, working = 2 * 128 * 2 * 16_384, 16_384 * 2 * (2 * 14_336 + 4_096)
    assert backward.activations == 31 * between + angles + layer + working
    held = moment(estimated, "end of forward").activations
    assert held == 31 * between + angles + last
    assert moment(estimated, "update").buffers == 2 * 200_000_000 + 4 * n
    assert moment(estimated, "build").host == 2 * N == estimated.machine
    drawn = estimate(llama_8b, ROW, replace(ON_64_GPUS, from_files=False))
    assert drawn.machine == 4 * N
    # DeepSpeed moves the whole model to the GPU before it takes a shard of it.
    assert estimated.peak.name == "start"
    assert estimated.device == 2 * N + 2 * n


def test_ddp_by_hand(llama_8b):
    setting = replace(ON_64_GPUS, zero_stage=0, dtype="float32", attention="repeated", liger=False)
    update = moment(estimate(llama_8b, ROW, setting), "update")
    assert (update.weights, update.gradients, update.optimizer) == (4 * N, 4 * N, 8 * N)
    assert update.buffers == 0  # gradients are views of DDP's buckets, and AdamW is fused
    on_cpu = moment(estimate(llama_8b, ROW, replace(setting, on_gpu=False)), "update")
    assert on_cpu.buffers == 2 * 4 * EMBEDDING


@pytest.mark.parametrize(("stage", "gradients"), [(1, 4 * N + 2 * N), (2, 4 * (N // 8))])
def test_sharded_optimizers_by_hand(llama_8b, stage, gradients):
    setting = replace(ON_64_GPUS, zero_stage=stage, world_size=8)
    update = moment(estimate(llama_8b, ROW, setting), "update")
    n = N // 8
    assert (update.weights, update.gradients, update.optimizer) == (2 * N, gradients, 12 * n)
    assert update.buffers == 0
    backward = moment(estimate(llama_8b, ROW, setting), "backward")
    # Of stage 2 one bucket is exchanged while another is filled; stage 1 has none in bfloat16.
    assert backward.buffers == (2 * 2 * 200_000_000 if stage == 2 else 0)


def test_a_second_partition_takes_the_weights_once_more_on_each_machine(llama_8b):
    once = estimate(llama_8b, ROW, ON_64_GPUS)
    twice = estimate(llama_8b, ROW, replace(ON_64_GPUS, secondary_over=8))
    assert twice.part("weights") - once.part("weights") == 2 * N // 8
    assert twice.device - once.device == 2 * N // 8


def test_only_sharded_weights_on_the_device_have_a_second_partition():
    ways = alternatives(replace(ON_64_GPUS, secondary_over=8))
    assert replace(ON_64_GPUS, secondary_over=8) in ways
    assert {(way.zero_stage, way.offload) for way in ways if way.secondary_over} == {
        (3, "none"),
        (3, "optimizer"),
    }


@pytest.mark.parametrize(
    ("num_workers", "gpus_per_node", "over"),
    [(64, 8, 8), (16, 4, 4), (8, 8, 0), (12, 8, 0), (4, 1, 0), (1, 8, 0)],
)
def test_a_second_partition_is_expected_over_full_machines(num_workers, gpus_per_node, over):
    asked = ClusterConfig(zero_stage=3, zero_secondary_partition=True)
    assert secondary_over(asked, num_workers, gpus_per_node) == over
    assert secondary_over(ClusterConfig(zero_stage=3), num_workers, gpus_per_node) == 0
    nodes = [rank // gpus_per_node for rank in range(num_workers)]
    assert find_secondary_size(nodes) == max(over, 1)


def test_offloading_moves_the_optimizer_to_the_machine(llama_8b):
    setting = replace(ON_64_GPUS, world_size=8)
    here = estimate(llama_8b, ROW, setting)
    there = estimate(llama_8b, ROW, replace(setting, offload="optimizer"))
    n = N // 8
    assert here.part("optimizer") == 12 * n
    assert there.part("optimizer") == there.part("gradients") - 2 * 4_096 * 14_336 == 0
    assert moment(there, "update").host == (4 + 8 + 4 + 4) * n
    everything = estimate(llama_8b, ROW, replace(setting, offload="all"))
    assert moment(everything, "update").host == (4 + 8 + 4 + 4 + 2) * n
    assert there.part("weights") - everything.part("weights") == 2 * n


def test_every_way_to_train_is_compared_once_and_the_least_effort_comes_first():
    ways = alternatives(replace(ON_64_GPUS, zero_stage=0, checkpointing=False))
    assert len({(w.zero_stage, w.offload, w.checkpointing) for w in ways}) == len(ways) == 16
    assert (ways[0].zero_stage, ways[0].checkpointing, ways[0].offload) == (0, False, "none")
    assert [way.zero_stage for way in ways[:4]] == [0, 1, 2, 3]
    on_cpu = alternatives(replace(ON_64_GPUS, on_gpu=False))
    assert len(on_cpu) == 8
    assert {way.offload for way in on_cpu} == {"none"}


def test_deepspeed_s_defaults_are_those_that_are_counted_with():
    from deepspeed.runtime.engine import MEMORY_OPT_ALLREDUCE_SIZE
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = DeepSpeedZeroConfig(stage=3)
    assert known.prefetch_bucket_size == memory.PREFETCH
    assert MEMORY_OPT_ALLREDUCE_SIZE == memory.ALL_REDUCE
    assert known.param_persistence_threshold == memory.PERSISTENT
    assert known.sub_group_size == memory.SUB_GROUP


settings = st.builds(
    MemorySetting,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    zero_stage=st.integers(0, 3),
    checkpointing=st.booleans(),
    world_size=st.sampled_from([2, 3, 8, 64]),
    on_gpu=st.booleans(),
    layout=st.just("packed"),
    accumulates=st.booleans(),
)

rows = st.integers(10, 20_000).map(
    lambda size: ForwardPass(positions=size, queries=size, keys=size, masked=0, products=0)
)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    heads, layers = draw(st.integers(1, 32)), draw(st.integers(3, 40))
    hidden, inside = 64 * heads, 64 * draw(st.integers(1, 200))
    matrices = [hidden * hidden] * 4 + [hidden * inside] * 3
    of_layer = [*matrices, hidden, hidden]
    embedding = hidden * draw(st.integers(1, 100_000))
    return Architecture(
        family="llama", num_layers=layers, hidden=hidden, intermediate=inside, num_heads=heads,
        query_width=hidden, key_width=hidden, parameters=(embedding, *of_layer * layers, hidden),
        layer_parameters=sum(of_layer), largest_in_layer=max(of_layer), is_trimmable=True,
    )  # fmt: skip


@given(architectures(), rows, settings)
def test_a_higher_stage_holds_no_more_weights_gradients_and_state(architecture, row, setting):
    held = []
    for stage in range(4):
        update = moment(estimate(architecture, row, replace(setting, zero_stage=stage)), "update")
        held.append(update.weights + update.gradients + update.optimizer)
    small = 4 * sum(size for size in architecture.parameters if size <= memory.PERSISTENT)
    assert held[1] <= held[0] + 64
    assert held[2] <= held[1] + 64
    assert held[3] <= held[2] + small + 64


@given(architectures(), rows, settings)
def test_more_workers_need_no_more_each(architecture, row, setting):
    more = replace(setting, world_size=2 * setting.world_size)
    assert estimate(architecture, row, more).device <= estimate(architecture, row, setting).device


@given(architectures(), rows, settings)
def test_recomputing_needs_no_more(architecture, row, setting):
    without, recomputing = (
        estimate(architecture, row, replace(setting, checkpointing=checkpointing))
        for checkpointing in (False, True)
    )
    assert recomputing.device <= without.device
    assert recomputing.part("activations") <= without.part("activations")


@given(architectures(), rows, settings)
def test_more_tokens_need_no_less(architecture, row, setting):
    double = ForwardPass(
        positions=2 * row.positions, queries=2 * row.queries, keys=2 * row.keys, masked=0,
        products=0,
    )  # fmt: skip
    smaller, larger = (estimate(architecture, some, setting) for some in (row, double))
    assert smaller.device <= larger.device
