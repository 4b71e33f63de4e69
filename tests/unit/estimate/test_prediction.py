"""The preferred choice, the curve over numbers of GPUs, and the recipe's figures."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapes import llama_8b, meta_classifier

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.estimate.gpu_speed import Compute
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.moments import MemoryEstimate
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import (
    Choice,
    Prediction,
    choices_of,
    describe_prediction,
    predict_run,
    prediction_to_json,
    prefer,
    ways,
)
from rm_ray.estimate.timing import Load, StepTime
from rm_ray.model.flops import ModelFlops

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests" / "benchmarks")]

import predict  # noqa: E402

COMPUTE = Compute(peak=1_000e12, reached=400e12, source="given")
NETWORK = Network(within_node=450e9, between_nodes=50e9, gpus_per_node=8, latency=0.0)
SETTING = MemorySetting(dtype="bfloat16", zero_stage=2, world_size=64, on_gpu=True)


def some_plan() -> Plan:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(100, 900, (2, 1_024))
    prefix = rng.integers(0, 100, 1_024)
    return Plan(
        lengths=GroupLengths.of_pairs(chosen=chosen, rejected=rejected, prefix=prefix),
        settings=PlanSettings(global_batch_size=256, tokens_per_micro_batch=16_384),
    )


def way(
    seconds: float, stage: int, *, traffic: float = 0.0, fits: bool = True, **more: Any
) -> Choice:
    time = StepTime(compute=seconds, update=0, exposed=0, traffic=traffic, utilisation=0.1)
    setting = replace(SETTING, zero_stage=stage, **more)
    estimated = MemoryEstimate(moments=(), on_gpu=True)
    return Choice(setting=setting, memory=estimated, time=time, fits=fits)


def test_the_simplest_choice_within_a_tenth_of_the_fastest_is_preferred():
    fastest = way(1.0, 3)
    assert prefer([fastest, way(1.09, 2), way(1.11, 1), way(0.5, 0, fits=False)]) == way(1.09, 2)
    plain, again = way(1.05, 3), way(1.0, 3, checkpointing=True)
    assert prefer([again, plain]) == plain
    second = way(1.0, 3, secondary_size=8)
    assert prefer([second, plain]) == plain
    assert prefer([again, way(1.0, 2, checkpointing=True), plain]).setting.zero_stage == 2
    assert prefer([second, again]) == second  # recomputation counts before a second partition
    quiet = way(1.04, 3, traffic=0.1)
    assert prefer([way(1.0, 3, traffic=0.2), quiet]) == quiet
    assert prefer([way(1.0, 0, fits=False)]) is None


def test_more_gpus_are_faster_and_only_fitting_choices_are_preferred():
    plan, flops = some_plan(), ModelFlops.of(meta_classifier())

    def of(memory: int | None) -> object:
        return predict_run(
            plan, flops, llama_8b(), SETTING, compute=COMPUTE, network=NETWORK, gpu_memory=memory
        )

    prediction = of(80 * 10**9)
    assert [point.num_workers for point in prediction.curve] == [8, 16, 32, 64, 128]
    times = [point.best.time for point in prediction.curve if point.best]
    assert len(times) == 5
    assert [t.seconds for t in times] == sorted((t.seconds for t in times), reverse=True)
    assert all(0 < time.utilisation < 0.4 for time in times)
    assert prediction.best is not None and prediction.best.fits
    assert prediction.best.memory.device < 80e9
    unfit = [choice for choice in prediction.choices if choice.fits is False]
    assert {choice.setting.zero_stage for choice in unfit} >= {0}

    nowhere = of(10**9)
    assert nowhere.best is None
    assert "nothing fits" in "\n".join(describe_prediction(nowhere))
    lines = describe_prediction(prediction)
    assert "predicted, not measured" in lines[0]
    assert sum("recommended" in line for line in lines[2:12]) == 1
    document = prediction_to_json(prediction)
    assert document["is_predicted"] and document["best"]["seconds"] == prediction.best.time.seconds


def test_a_second_partition_needs_several_full_machines():
    def second(workers: int) -> int:
        return sum(
            w.secondary_size == 8 for w in ways(replace(SETTING, world_size=workers), NETWORK)
        )

    assert [second(workers) for workers in (8, 16, 20, 64)] == [0, 2, 0, 2]


def test_activations_are_offloaded_where_nothing_else_fits_or_the_setting_says_so():
    long = np.full(64, 30_000)
    plan = Plan(
        lengths=GroupLengths.of_pairs(chosen=long, rejected=long, prefix=np.zeros_like(long)),
        settings=PlanSettings(global_batch_size=8, tokens_per_micro_batch=16_384),
    )

    def of(gigabytes: int, **setting: Any) -> list[Choice]:
        _, choices = choices_of(
            plan,
            ModelFlops.of(meta_classifier(num_hidden_layers=32)),
            llama_8b(),
            replace(SETTING, attention="varlen", liger=True, world_size=8, **setting),
            compute=COMPUTE,
            network=NETWORK,
            gpu_memory=gigabytes * 10**9,
        )
        return choices

    def offloading(choices: list[Choice]) -> list[int]:
        return [c.setting.zero_stage for c in choices if c.setting.activation_offloading]

    assert offloading(of(200)) == []
    # 64 GB: stage 3 recomputes within 49 GB, stage 2 would need 58 GB, or 44 GB with the host.
    assert offloading(of(64)) == [2]
    plain = prefer(of(64))
    assert plain is not None and plain.setting.recomputation == "yes"
    # 48 GB: only stage 3 with the host is left, which needs 34 GB.
    best = prefer(of(48))
    assert best is not None and best.setting.recomputation == "host"
    assert offloading(of(48)) == [3]
    asked = of(200, checkpointing=True, activation_offloading=True)
    assert offloading(asked) == [0, 1, 2, 3]
    assert [c.setting.recomputation for c in asked] == ["no"] * 4 + ["host"] * 4


@pytest.mark.parametrize(("is_measured", "pads"), [(False, True), (True, False)])
def test_padding_is_added_to_an_assumed_speed_but_not_to_a_measured_one(
    is_measured: bool, pads: bool
):
    plan, flops = some_plan(), ModelFlops.of(meta_classifier(num_hidden_layers=2))
    plan = replace(plan, settings=replace(plan.settings, layout="padded"))
    work, _ = choices_of(
        plan,
        flops,
        llama_8b(layers=2),
        replace(SETTING, layout="padded", attention="sdpa", world_size=8),
        compute=replace(COMPUTE, is_measured=is_measured),
        network=NETWORK,
        gpu_memory=None,
    )

    assert work == Load.of(plan, flops, world_size=8, most_steps=40, counts_padding=pads)


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return predict.predict()


def test_the_page_shows_the_current_prediction(prediction: Prediction):
    shown = (ROOT / "rm_ray" / "estimate" / "README.md").read_text()

    assert "\n".join(describe_prediction(prediction)) in shown, (
        "copy the output of tests/benchmarks/predict.py into rm_ray/estimate/README.md"
    )


def test_the_recipe_uses_the_preferred_choice_and_its_longest_pair_fits(prediction: Prediction):
    recipe = predict.recipe()
    best = prediction.best

    assert best is not None
    assert best.setting.zero_stage == recipe["cluster"]["zero_stage"]
    assert best.setting.checkpointing == recipe["model"]["gradient_checkpointing"]
    assert bool(best.setting.secondary_size) == recipe["cluster"].get(
        "zero_secondary_partition", False
    )
    longest = np.array([recipe["data"]["max_length"]])
    assert recipe["batch"]["tokens_per_micro_batch"] == 2 * longest[0]
    pair = GroupLengths.of_pairs(chosen=longest, rejected=longest, prefix=np.array([0]))
    row = ForwardPass.of(pair, layout="packed", attention="varlen")
    needed = estimate(predict.architecture(), row, best.setting).device
    room = usable_memory(predict.GPU_MEMORY)
    text = predict.RECIPE.read_text()
    assert f"{needed / 1e9:.1f} of {room / 1e9:.1f} usable GB" in text
