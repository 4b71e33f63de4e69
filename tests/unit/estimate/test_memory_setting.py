"""Memory settings: their alternatives and element sizes."""

from dataclasses import replace

import pytest
from shapes import ON_64_GPUS

from rm_ray.estimate.activations import Arithmetic
from rm_ray.estimate.memory_setting import MemorySetting, alternatives


def test_only_stage_3_with_weights_on_the_device_has_a_second_partition():
    ways = alternatives(replace(ON_64_GPUS, secondary_size=8))
    assert replace(ON_64_GPUS, secondary_size=8) in ways
    assert {(way.zero_stage, way.offload) for way in ways if way.secondary_size} == {
        (3, "none"),
        (3, "optimizer"),
    }


def test_every_alternative_appears_once_and_the_simplest_comes_first():
    ways = alternatives(replace(ON_64_GPUS, zero_stage=0, checkpointing=False))
    assert len({(w.zero_stage, w.offload, w.recomputation) for w in ways}) == len(ways) == 20
    assert (ways[0].zero_stage, ways[0].checkpointing, ways[0].offload) == (0, False, "none")
    assert [way.zero_stage for way in ways[:4]] == [0, 1, 2, 3]
    assert [(way.recomputation, way.offload) for way in ways[::4][:4]] == [
        ("no", "none"), ("yes", "none"), ("host", "none"), ("no", "optimizer"),
    ]  # fmt: skip
    on_cpu = alternatives(replace(ON_64_GPUS, on_gpu=False))
    assert len(on_cpu) == 8
    assert {way.offload for way in on_cpu} == {"none"}
    assert {way.recomputation for way in on_cpu} == {"no", "yes"}


def test_offloaded_activations_come_beside_every_offload_where_they_are_set():
    asked = replace(ON_64_GPUS, offload="optimizer", activation_offloading=True)
    ways = alternatives(asked)
    assert asked in ways
    assert len(ways) == 24
    assert all(way.checkpointing for way in ways if way.activation_offloading)


@pytest.mark.parametrize(
    ("dtype", "stage", "stream", "product"),
    [
        ("float32", 0, 4, 4),
        ("float32", 2, 4, 4),
        ("bfloat16", 0, 4, 2),  # autocast
        ("bfloat16", 1, 2, 2),
    ],
)
def test_deepspeed_also_casts_the_hidden_states_between_layers(dtype, stage, stream, product):
    setting = MemorySetting(dtype=dtype, zero_stage=stage)
    assert setting.arithmetic == Arithmetic(stream=stream, product=product)
    assert setting.weight_size == product


def test_weights_of_4_bits_are_not_sharded():
    setting = MemorySetting(dtype="bfloat16", zero_stage=0, on_gpu=True, is_quantized=True)
    assert {option.zero_stage for option in alternatives(setting)} == {0, 1, 2}
