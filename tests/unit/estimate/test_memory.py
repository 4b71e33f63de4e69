"""Properties of a worker's memory for any sizes, and the memory to build the model."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import ON_64_GPUS, ROW, architectures, llama_8b, meta_classifier, rows, settings

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.moments import MemoryEstimate, Moment
from rm_ray.estimate.zero_memory import PERSISTENT
from rm_ray.model.tuning.trainable import outline_trained

OFF = LoraConfig()


def moment(estimated: MemoryEstimate, name: str) -> Moment:
    return next(found for found in estimated.moments if found.name == name)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_worker_builds_its_model_without_weights_unless_it_draws_them(zero_stage):
    small = llama_8b(layers=1)
    setting = replace(ON_64_GPUS, zero_stage=zero_stage)
    read, drawn = (
        estimate(small, ROW, replace(setting, from_files=from_files)).moments[0]
        for from_files in (True, False)
    )
    assert read == Moment(name="build", host=4 * max(small.parameters))
    assert drawn == Moment(name="build", host=4 * small.num_parameters)


@given(architectures(), rows, settings)
def test_a_higher_stage_never_holds_more_weights_gradients_and_state(architecture, row, setting):
    held = []
    for stage in range(4):
        update = moment(estimate(architecture, row, replace(setting, zero_stage=stage)), "update")
        held.append(update.weights + update.gradients + update.optimizer)
    small = 4 * sum(size for size in architecture.parameters if size <= PERSISTENT)
    assert held[1] <= held[0] + 64
    assert held[2] <= held[1] + 64
    assert held[3] <= held[2] + small + 64


@given(architectures(), rows, settings)
def test_more_workers_never_need_more_memory_each(architecture, row, setting):
    more = replace(setting, world_size=2 * setting.world_size)
    assert estimate(architecture, row, more).device <= estimate(architecture, row, setting).device


@given(architectures(), rows, settings)
def test_recomputation_never_needs_more_memory(architecture, row, setting):
    without, recomputing = (
        estimate(architecture, row, replace(setting, checkpointing=checkpointing))
        for checkpointing in (False, True)
    )
    assert recomputing.device <= without.device
    assert recomputing.part("activations") <= without.part("activations")


@given(architectures(), rows, settings)
def test_inputs_of_layers_in_host_memory_leave_the_device(architecture, row, setting):
    recomputing = replace(setting, checkpointing=True)
    here, there = (
        moment(
            estimate(architecture, row, replace(recomputing, activation_offloading=on)), "backward"
        )
        for on in (False, True)
    )
    size = row.positions * architecture.hidden * setting.arithmetic.stream
    layers = architecture.num_layers - 1  # the last one is trimmed
    assert here.activations - there.activations == (layers - 1) * size
    assert 2 * layers * size <= there.host - here.host < 4 * layers * size


@given(architectures(), rows, settings)
def test_more_tokens_never_need_less_memory(architecture, row, setting):
    double = ForwardPass(
        positions=2 * row.positions, queries=2 * row.queries, keys=2 * row.keys, masked=0,
        products=0,
    )  # fmt: skip
    smaller, larger = (estimate(architecture, some, setting) for some in (row, double))
    assert smaller.device <= larger.device


LORA = LoraConfig(rank=64)


def tuned(lora: LoraConfig = OFF, *, trainable: str = "all", layers: int = 32) -> Architecture:
    model = ModelConfig(trainable=trainable)
    return Architecture.of(outline_trained(meta_classifier(num_hidden_layers=layers), model, lora))


def test_frozen_weights_are_in_the_dtype_of_products_without_gradients_or_state():
    llama = tuned(LORA)
    frozen, trained = llama.num_frozen, llama.num_trained
    assert frozen == 7_504_928_768 - 4_096 and trained == 167_776_256
    one = MemorySetting(dtype="bfloat16", zero_stage=0, on_gpu=True, attention="varlen", liger=True)
    update = moment(estimate(llama, ROW, one), "update")
    assert update == Moment(
        name="update", weights=2 * frozen + 4 * trained, gradients=4 * trained,
        optimizer=8 * trained,
    )  # fmt: skip
    shard = trained // 64
    for stage in (1, 2):
        update = moment(estimate(llama, ROW, replace(ON_64_GPUS, zero_stage=stage)), "update")
        assert (update.weights, update.optimizer) == (2 * (frozen + trained), 12 * shard)
    third = moment(estimate(llama, ROW, ON_64_GPUS), "update")
    gathered = 65 * 4_096 + 4_096 + 64 * 1_024 * 64  # norms, head, and B of keys and values
    assert third.weights == 2 * (-(-frozen // 64) + shard + gathered)
    assert third.optimizer == 12 * shard


def test_four_bits_of_a_matrix_take_a_quarter_and_their_scales():
    llama = tuned(LORA, layers=4)
    assert llama.tuning is not None
    one = MemorySetting(dtype="bfloat16", zero_stage=0, on_gpu=True, attention="varlen", liger=True)
    plain, quantized = (
        estimate(llama, ROW, replace(one, is_quantized=flag)) for flag in (False, True)
    )
    matrices = 4 * (2 * 4_096**2 + 2 * 4_096 * 1_024 + 3 * 4_096 * 14_336)
    assert llama.tuning.in_matrices == matrices
    saved = moment(plain, "update").weights - moment(quantized, "update").weights
    assert 8 * (2 * matrices - saved) / matrices == pytest.approx(4.127, abs=0.0005)
    more = moment(quantized, "backward").buffers - moment(plain, "backward").buffers
    assert more == 2 * 4_096 * 14_336  # the matrix in use


FOUR = [
    tuned(LoraConfig(rank=8), layers=4),
    tuned(LORA, layers=4),
    tuned(trainable="last:2", layers=4),
    tuned(trainable="head", layers=4),
]


@given(rows, settings, st.sampled_from(FOUR))
def test_training_a_part_needs_no_more_memory_but_for_adapters(row, setting, part):
    every, some = (estimate(model, row, setting) for model in (llama_8b_of_4, part))
    rank = part.tuning.rank if part.tuning else 0
    adapters = 4 * part.num_trained * (rank > 0) + 8 * 4 * rank * row.positions * 7
    for one, other in zip(some.moments[1:], every.moments[1:], strict=True):
        # A frozen layer's activations are freed, so they count from the start of the forward pass.
        most = every.peak if one.name == "start of forward" else other
        assert one.device <= most.device + adapters + 64


llama_8b_of_4 = llama_8b(layers=4)


def test_a_model_of_which_a_part_is_trained_is_read_one_tensor_at_a_time():
    tensor = 4 * max(tuned(LORA, layers=2).parameters)
    head, last = (tuned(trainable=trainable, layers=2) for trainable in ("head", "last:1"))
    for part in (head, last):
        assert estimate(part, ROW, ON_64_GPUS).machine == tensor
    lora, nf4 = (
        estimate(tuned(LORA, layers=2), ROW, replace(ON_64_GPUS, zero_stage=0, is_quantized=is_on))
        for is_on in (False, True)
    )
    adapters = 4 * tuned(LORA, layers=2).num_trained
    assert lora.machine == tensor + adapters  # which every worker draws
    assert tensor + adapters < nf4.machine < tensor + adapters + tuned(layers=2).num_parameters * 2


def test_activations_of_frozen_layers_are_counted_as_far_as_gradients_go():
    setting = replace(ON_64_GPUS, checkpointing=False)
    found = {
        trainable: estimate(tuned(trainable=trainable, layers=9), ROW, setting).part("activations")
        for trainable in ("all", "last:5", "last:1", "head")
    }
    assert found["last:5"] == pytest.approx(found["all"] / 2, rel=0.1)
    assert found["head"] <= found["last:1"] < found["all"] / 4
