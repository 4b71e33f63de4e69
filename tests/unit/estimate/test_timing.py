"""The predicted time of a step: known answers and general properties."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapes import llama_8b, meta_classifier

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.gpu_speed import Compute
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.estimate.timing import (
    HOST_BANDWIDTH,
    Load,
    predict,
    sizes_around,
    update_seconds,
)
from rm_ray.estimate.traffic import DDP_BUCKET, traffic_of
from rm_ray.estimate.workload import measure_workload
from rm_ray.model.flops import ModelFlops
from rm_ray.model.tuning.trainable import outline_trained
from rm_ray.train.deepspeed_config import BUCKET

COMPUTE = Compute(peak=1_000e12, reached=400e12, source="given")
NETWORK = Network(within_node=450e9, between_nodes=50e9, gpus_per_node=8, latency=0.0)
SETTING = MemorySetting(dtype="bfloat16", zero_stage=2, world_size=64, on_gpu=True)


EIGHT_BILLION = llama_8b()
NUMBERS = EIGHT_BILLION.num_parameters


def load(*micro_batches: float, ranks: int = 64) -> Load:
    return Load(slowest=(micro_batches,), total=ranks * sum(micro_batches), tokens=1)


def test_a_step_takes_its_passes_plus_the_traffic_they_do_not_hide():
    """400e12 FLOPs at 400e12 FLOP/s take one second, a third of it in the forward pass."""
    stage_2 = predict(load(400e12), EIGHT_BILLION, SETTING, compute=COMPUTE, network=NETWORK)
    ring = 2 * NUMBERS * 63 / 64 / 400e9  # eight cards at 50 GB/s

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


def test_inputs_of_layers_travel_to_the_host_and_back_and_nothing_hides_it():
    recomputing = replace(SETTING, checkpointing=True)
    work = replace(load(100e12, 300e12), tokens=64 * 10_000)
    here, there = (
        predict(
            work,
            EIGHT_BILLION,
            replace(recomputing, activation_offloading=on),
            compute=COMPUTE,
            network=NETWORK,
        )
        for on in (False, True)
    )
    copies = 2 * 10_000 * 31 * 4_096 * 2 / HOST_BANDWIDTH  # 31 layers of bfloat16, 10,000 tokens
    assert there.exposed - here.exposed == pytest.approx(copies)
    assert there.traffic - here.traffic == pytest.approx(copies)
    assert there.compute == here.compute


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
    """The network is so fast that only latency counts."""
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
    setting = replace(SETTING, zero_stage=3, secondary_size=8)
    back = traffic_of(EIGHT_BILLION, setting, num_micro_batches=1).backward[0]
    again = back.collectives - buckets
    assert 0 < again < large
    assert seconds(3) == pytest.approx((2 * (large + again + buckets) + 1) * whole)
    assert seconds(3, secondary_size=8) == pytest.approx(
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


SMALL = llama_8b(layers=2)


def some_plan() -> Plan:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(100, 900, (2, 1_024))
    prefix = rng.integers(0, 100, 1_024)
    return Plan(
        lengths=GroupLengths.of_pairs(chosen=chosen, rejected=rejected, prefix=prefix),
        settings=PlanSettings(global_batch_size=256, tokens_per_micro_batch=16_384),
    )


def test_the_load_covers_the_slowest_rank_and_all_pairs():
    plan, flops = some_plan(), ModelFlops.of(meta_classifier(num_hidden_layers=2))
    work = Load.of(plan, flops, world_size=8, most_steps=100)

    each = flops.training(plan.lengths)
    assert work.num_steps == 4
    assert work.total == pytest.approx(each.sum())
    assert work.tokens == plan.lengths.distinct.sum()
    slowest = sum(sum(step) for step in work.slowest)
    assert each.sum() / 8 <= slowest < 1.2 * each.sum() / 8  # ranks have nearly the same work


def test_frozen_weights_take_two_thirds_of_the_time_and_layers_below_a_third():
    plan, classifier = some_plan(), meta_classifier(num_hidden_layers=4)

    def compute(trainable: str, rank: int, *, recomputes: bool = False) -> float:
        settings = ModelConfig(trainable=trainable), LoraConfig(rank=rank)
        outline = outline_trained(classifier, *settings)
        work = Load.of(plan, ModelFlops.of(outline), world_size=1, most_steps=4)
        setting = replace(SETTING, world_size=1, checkpointing=recomputes)
        time = predict(work, Architecture.of(outline), setting, compute=COMPUTE, network=NETWORK)
        return time.compute

    whole = compute("all", 0)
    assert compute("all", 0, recomputes=True) == pytest.approx(whole * 4 / 3)
    assert compute("all", 1) == pytest.approx(whole * 2 / 3, rel=0.02)
    assert compute("all", 1, recomputes=True) == pytest.approx(whole, rel=0.02)
    assert compute("head", 0) == pytest.approx(whole / 3, rel=1e-3)
    assert compute("head", 0, recomputes=True) == pytest.approx(compute("head", 0))
    assert whole / 3 < compute("last:2", 0) < compute("last:3", 0) < whole * 0.9


def test_padding_takes_time_at_an_assumed_speed_but_is_no_useful_work():
    flops = ModelFlops.of(meta_classifier(num_hidden_layers=2))
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


def test_the_curve_runs_from_one_machine_to_twice_the_requested_gpus():
    assert sizes_around(64) == [8, 16, 32, 64, 128]
    assert sizes_around(20) == [8, 16, 20, 40]
    assert sizes_around(4) == [4, 8]
