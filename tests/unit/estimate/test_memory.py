"""Properties of a worker's memory for any sizes, and the memory to build the model."""

from dataclasses import replace

import pytest
from hypothesis import given
from shapes import ON_64_GPUS, ROW, architectures, llama_8b, rows, settings

from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.moments import MemoryEstimate, Moment
from rm_ray.estimate.zero_memory import PERSISTENT


def moment(estimated: MemoryEstimate, name: str) -> Moment:
    return next(found for found in estimated.moments if found.name == name)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 2),
        ({"from_files": False}, 4),
        ({"zero_stage": 0}, 4),
        ({"dtype": "float32"}, 4),
    ],
)
def test_weights_are_built_in_bfloat16_if_zero_reads_them_from_files(changes, size):
    small = llama_8b(layers=1)
    build = estimate(small, ROW, replace(ON_64_GPUS, **changes)).moments[0]
    assert build == Moment(name="build", host=size * small.num_parameters)


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
def test_more_tokens_never_need_less_memory(architecture, row, setting):
    double = ForwardPass(
        positions=2 * row.positions, queries=2 * row.queries, keys=2 * row.keys, masked=0,
        products=0,
    )  # fmt: skip
    smaller, larger = (estimate(architecture, some, setting) for some in (row, double))
    assert smaller.device <= larger.device
