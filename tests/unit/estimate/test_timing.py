"""The predicted time of a step: known answers, and what must hold whatever the numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.data.cache.pair_tokens import PairLengths
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory import MemoryEstimate, MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import (
    Choice,
    choices_of,
    describe_prediction,
    predict_run,
    prediction_to_json,
    preferred,
    ways,
)
from rm_ray.estimate.timing import Compute, Load, StepTime, predict, sizes_around, update_seconds
from rm_ray.estimate.traffic import DDP_BUCKET, traffic_of
from rm_ray.estimate.workload import measure_workload
from rm_ray.model.flops import ModelFlops
from rm_ray.train.zero import BUCKET

COMPUTE = Compute(peak=1_000e12, reached=400e12, source="given")
NETWORK = Network(within_node=450e9, between_nodes=50e9, gpus_per_node=8, latency=0.0)
SETTING = MemorySetting(dtype="bfloat16", zero_stage=2, world_size=64, on_gpu=True)


def architecture(*, layers: int = 32) -> Architecture:
    return Architecture.of(classifier(layers))


def classifier(layers: int) -> AutoModelForSequenceClassification:
    config = AutoConfig.for_model(
        "llama", hidden_size=4_096, intermediate_size=14_336, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, vocab_size=128_264, num_labels=1,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


EIGHT_BILLION = architecture()
NUMBERS = EIGHT_BILLION.num_parameters


def load(*micro_batches: float, ranks: int = 64) -> Load:
    return Load(slowest=(micro_batches,), total=ranks * sum(micro_batches), tokens=1)


@pytest.mark.parametrize("passes", [1, 3])
def test_bytes_of_a_step_are_those_of_the_weights_times_what_each_stage_sends(passes: int):
    def of(stage: int, **changes: object) -> dict[str, int]:
        setting = replace(SETTING, zero_stage=stage, **changes)
        total = traffic_of(EIGHT_BILLION, setting, num_micro_batches=passes, live=2).total
        return {k: n for k, n in vars(total).items() if n and k != "collectives"}

    whole = 2 * NUMBERS
    assert of(0) == {"reduced": 2 * whole}  # float32
    assert of(1) == {"reduced": whole, "gathered": whole}
    assert of(2) == {"reduced": passes * whole, "gathered": whole}
    small = 2 * sum(n for n in EIGHT_BILLION.parameters if n <= 100_000)
    stage_3 = of(3)
    assert stage_3["scattered"] == passes * whole
    assert stage_3["gathered"] == pytest.approx(2 * passes * (whole - small) + small, rel=1e-8)
    near = of(3, secondary_over=8)
    assert near["gathered"] == whole
    assert near["gathered"] + near["gathered_near"] == stage_3["gathered"]
    assert of(3, world_size=1) == {}


def test_what_zero_3_keeps_until_the_backward_pass_is_not_gathered_again():
    def gathered(live: int, *, checkpointing: bool = False) -> int:
        setting = replace(SETTING, zero_stage=3, checkpointing=checkpointing)
        passes = traffic_of(EIGHT_BILLION, setting, num_micro_batches=1, live=live)
        return passes.backward[0].gathered

    assert gathered(0) - gathered(2_000_000_000) == 2 * 1_000_000_000
    assert gathered(0) - gathered(3_000_000_000, checkpointing=True) == 2 * 1_000_000_000
    assert gathered(100 * NUMBERS) == 0


def test_a_step_is_its_passes_and_the_traffic_that_they_do_not_hide():
    """400e12 FLOPs on 400e12 FLOP/s take a second, a third of it forward."""
    stage_2 = predict(load(400e12), EIGHT_BILLION, SETTING, compute=COMPUTE, network=NETWORK)
    ring = 2 * NUMBERS * 63 / 64 / 400e9  # eight cards of 50 GB/s

    update = NUMBERS * 34 / 64 / 3e12
    assert stage_2.compute == pytest.approx(1.0)
    assert stage_2.update == pytest.approx(update)
    assert stage_2.exposed == pytest.approx(ring)  # the new weights
    assert stage_2.traffic == pytest.approx(3 * ring)
    assert stage_2.utilisation == pytest.approx(0.4 / (1 + update + ring))
    assert stage_2.hours(3_600) == pytest.approx(1 + update + ring)

    short = predict(load(4e12), EIGHT_BILLION, SETTING, compute=COMPUTE, network=NETWORK)
    assert short.exposed == pytest.approx(3 * ring - 0.01 * 2 / 3)

    again = replace(SETTING, checkpointing=True)
    recomputed = predict(load(400e12), EIGHT_BILLION, again, compute=COMPUTE, network=NETWORK)
    assert recomputed.compute == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("stage", "dtype", "moved"),
    [
        (0, "bfloat16", 44),
        (1, "bfloat16", 34 / 64),
        (3, "bfloat16", 34 / 64),
        (2, "float32", 28 / 64),
    ],
)
def test_the_update_moves_a_rank_s_optimizer_state_through_its_memory(
    stage: int, dtype: str, moved: float
):
    setting = replace(SETTING, zero_stage=stage, dtype=dtype)

    assert update_seconds(3 * 10**9, setting) == pytest.approx(3e9 * moved / 3e12)


def test_an_all_reduce_goes_round_twice_and_a_gather_within_a_machine_stays_there():
    """No bandwidth counts on so fast a network, so that all that is left is latency."""
    network = Network(within_node=1e30, between_nodes=1e30, gpus_per_node=8)

    def seconds(stage: int, **changes: object) -> float:
        setting = replace(SETTING, zero_stage=stage, **changes)
        time = predict(load(1.0, 1.0), EIGHT_BILLION, setting, compute=COMPUTE, network=network)
        return time.traffic

    whole, near = network.round(64), network.round(8)
    buckets = -(-NUMBERS // BUCKET)
    assert seconds(0) == pytest.approx(2 * -(-4 * NUMBERS // DDP_BUCKET) * whole)
    assert seconds(1) == pytest.approx((2 * buckets + 1) * whole)
    assert seconds(2) == pytest.approx((2 * 2 * buckets + 1) * whole)
    large = sum(n > 100_000 for n in EIGHT_BILLION.parameters)
    setting = replace(SETTING, zero_stage=3, secondary_over=8)
    back = traffic_of(EIGHT_BILLION, setting, num_micro_batches=1).backward[0]
    again = back.collectives - buckets
    assert 0 < again < large
    assert seconds(3) == pytest.approx((2 * (large + again + buckets) + 1) * whole)
    assert seconds(3, secondary_over=8) == pytest.approx(
        (large + 2 * buckets + 1) * whole + (large + 2 * again) * near
    )


@given(
    st.integers(0, 3), st.booleans(), st.integers(1, 3), st.floats(1e11, 1e15), st.floats(1.0, 64.0)
)
def test_a_faster_network_and_faster_gpus_never_take_longer(
    stage: int, checkpointing: bool, passes: int, flops: float, faster: float
):
    setting = replace(SETTING, zero_stage=stage, checkpointing=checkpointing)
    work = load(*[flops] * passes)

    def seconds(compute: Compute, network: Network) -> float:
        time = predict(work, SMALL, setting, compute=compute, network=network)
        assert 0 <= time.exposed <= time.traffic * (1 + 1e-9)
        assert 0 < time.utilisation <= compute.reached / compute.peak * (1 + 1e-9)
        return time.seconds

    usual = seconds(COMPUTE, NETWORK)
    network = replace(NETWORK, between_nodes=faster * 50e9, within_node=faster * 450e9)
    assert seconds(COMPUTE, network) <= usual * (1 + 1e-9)
    compute = replace(COMPUTE, reached=faster * 400e12, peak=faster * 1_000e12)
    assert seconds(compute, NETWORK) <= usual * (1 + 1e-9)


SMALL = architecture(layers=2)


def some_plan() -> Plan:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(100, 900, (2, 1_024))
    prefix = rng.integers(0, 100, 1_024)
    return Plan(
        lengths=PairLengths(chosen=chosen, rejected=rejected, prefix=prefix),
        settings=PlanSettings(global_batch_size=256, tokens_per_micro_batch=16_384),
    )


def test_the_load_is_that_of_the_slowest_rank_and_of_all_pairs():
    plan, flops = some_plan(), ModelFlops.of(classifier(2))
    work = Load.of(plan, flops, world_size=8, most_steps=100)

    each = flops.training(plan.lengths)
    assert work.num_steps == 4
    assert work.total == pytest.approx(each.sum())
    assert work.tokens == plan.lengths.distinct.sum()
    slowest = sum(sum(step) for step in work.slowest)
    assert each.sum() / 8 <= slowest < 1.2 * each.sum() / 8  # ranks have nearly the same work


def test_padding_takes_time_where_the_speed_is_assumed_and_is_no_progress():
    flops = ModelFlops.of(classifier(2))
    packed, padded = (
        replace(some_plan(), settings=replace(some_plan().settings, layout=layout))
        for layout in ("packed", "padded")
    )

    def of(plan: Plan, **changes: bool) -> Load:
        return Load.of(plan, flops, world_size=1, most_steps=100, **changes)

    def passes(one: Load) -> float:
        return sum(map(sum, one.slowest))

    assert passes(of(packed)) == pytest.approx(of(packed).total)
    assert of(padded).total == pytest.approx(of(packed).total)
    assert passes(of(padded, counts_padding=False)) == pytest.approx(of(packed).total)
    workload = measure_workload(padded, world_size=1, most_steps=100)
    waste = workload.computed / workload.distinct
    assert waste > 1.05
    assert passes(of(padded)) / of(padded).total == pytest.approx(waste, rel=0.01)


@pytest.mark.parametrize(("is_measured", "pads"), [(False, True), (True, False)])
def test_a_measured_speed_holds_the_padding_and_an_assumed_one_does_not(
    is_measured: bool, pads: bool
):
    plan, flops = some_plan(), ModelFlops.of(classifier(2))
    plan = replace(plan, settings=replace(plan.settings, layout="padded"))
    work, _ = choices_of(
        plan,
        flops,
        SMALL,
        replace(SETTING, layout="padded", attention="sdpa", world_size=8),
        compute=replace(COMPUTE, is_measured=is_measured),
        network=NETWORK,
        gpu_memory=None,
    )

    assert work == Load.of(plan, flops, world_size=8, most_steps=40, counts_padding=pads)


def way(
    seconds: float, stage: int, *, traffic: float = 0.0, fits: bool = True, **more: Any
) -> Choice:
    time = StepTime(compute=seconds, update=0, exposed=0, traffic=traffic, utilisation=0.1)
    setting = replace(SETTING, zero_stage=stage, **more)
    estimated = MemoryEstimate(moments=(), on_gpu=True)
    return Choice(setting=setting, estimated=estimated, time=time, fits=fits)


def test_of_ways_within_a_tenth_of_the_fastest_that_fits_the_simplest_is_preferred():
    fastest = way(1.0, 3)
    assert preferred([fastest, way(1.09, 2), way(1.11, 1), way(0.5, 0, fits=False)]) == way(1.09, 2)
    plain, again = way(1.05, 3), way(1.0, 3, checkpointing=True)
    assert preferred([again, plain]) == plain
    second = way(1.0, 3, secondary_over=8)
    assert preferred([second, plain]) == plain
    assert preferred([again, way(1.0, 2, checkpointing=True), plain]).setting.zero_stage == 2
    assert preferred([second, again]) == second  # recomputation counts before a second partition
    quiet = way(1.04, 3, traffic=0.1)
    assert preferred([way(1.0, 3, traffic=0.2), quiet]) == quiet
    assert preferred([way(1.0, 0, fits=False)]) is None


def test_more_gpus_are_faster_and_less_used_and_what_does_not_fit_is_not_taken():
    plan, flops = some_plan(), ModelFlops.of(classifier(32))

    def of(memory: int | None) -> object:
        return predict_run(
            plan, flops, EIGHT_BILLION, SETTING, compute=COMPUTE, network=NETWORK, gpu_memory=memory
        )

    prediction = of(80 * 10**9)
    assert [point.num_workers for point in prediction.curve] == [8, 16, 32, 64, 128]
    times = [point.best.time for point in prediction.curve if point.best]
    assert len(times) == 5
    assert [t.seconds for t in times] == sorted((t.seconds for t in times), reverse=True)
    assert all(0 < time.utilisation < 0.4 for time in times)
    assert prediction.best is not None and prediction.best.fits
    assert prediction.best.estimated.device < 80e9
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


def test_a_second_partition_is_tried_where_there_are_several_whole_machines():
    def second(workers: int) -> int:
        return sum(
            w.secondary_over == 8 for w in ways(replace(SETTING, world_size=workers), NETWORK)
        )

    assert [second(workers) for workers in (8, 16, 20, 64)] == [0, 2, 0, 2]


def test_the_curve_goes_from_a_machine_to_twice_what_is_asked():
    assert sizes_around(64) == [8, 16, 32, 64, 128]
    assert sizes_around(20) == [8, 16, 20, 40]
    assert sizes_around(4) == [4, 8]
