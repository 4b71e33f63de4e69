"""Bytes that ranks exchange per step."""

from dataclasses import replace

import pytest
from shapes import llama_8b, meta_classifier

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.network import Network
from rm_ray.estimate.traffic import NOTHING, Collective, Traffic, traffic_of
from rm_ray.model.tuning.trainable import outline_trained

SETTING = MemorySetting(dtype="bfloat16", zero_stage=2, world_size=64, on_gpu=True)
EIGHT_BILLION = llama_8b()
NUMBERS = EIGHT_BILLION.num_parameters


@pytest.mark.parametrize("passes", [1, 3])
def test_every_stage_exchanges_its_multiple_of_the_weights_per_step(passes: int):
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
    near = of(3, secondary_size=8)
    assert near["gathered"] == whole
    assert near["gathered"] + near["gathered_near"] == stage_3["gathered"]
    assert of(3, world_size=1) == {}


def test_zero_3_does_not_gather_weights_again_that_it_kept():
    def gathered(live: int, *, checkpointing: bool = False) -> int:
        setting = replace(SETTING, zero_stage=3, checkpointing=checkpointing)
        passes = traffic_of(EIGHT_BILLION, setting, num_micro_batches=1, live=live)
        return passes.backward[0].gathered

    assert gathered(0) - gathered(2_000_000_000) == 2 * 1_000_000_000
    assert gathered(0) - gathered(3_000_000_000, checkpointing=True) == 2 * 1_000_000_000
    assert gathered(100 * NUMBERS) == 0


def test_frozen_weights_are_gathered_but_their_gradients_do_not_exist():
    def traffic(trainable: str, stage: int) -> Traffic:
        outline = outline_trained(CLASSIFIER, ModelConfig(trainable=trainable), LoraConfig())
        some = Architecture.of(outline)
        setting = replace(SETTING, zero_stage=stage)
        return traffic_of(some, setting, num_micro_batches=1, live=0)

    trained = 4 * LAYER + 2 * 4_096
    assert traffic("last:4", 0).total.reduced == 4 * trained
    assert traffic("last:4", 2).update.gathered == 2 * trained
    last, head, every = (traffic(part, 3) for part in ("last:4", "head", "all"))
    assert last.forward == head.forward == every.forward
    assert last.backward[0].gathered == pytest.approx(every.backward[0].gathered / 2, rel=1e-6)
    assert last.backward[0].scattered == 2 * trained
    assert (head.backward[0].gathered, head.backward[0].scattered) == (0, 2 * 4_096)


CLASSIFIER = meta_classifier(num_hidden_layers=8)
LAYER = 218_112_000


def test_an_all_reduce_sends_twice_as_much_as_a_scatter_or_gather():
    network = Network(within_node=8e9, between_nodes=1e9, gpus_per_node=8, latency=0.0)
    reduced, scattered = Collective(reduced=8 * 10**9), Collective(scattered=8 * 10**9)
    assert reduced.seconds(network, 8) == 2 * scattered.seconds(network, 8) == 2 * 7 / 8
    gathered = Collective(gathered=8 * 10**9)
    assert gathered.seconds(network, 16) == scattered.seconds(network, 16) == 15 / 16


def test_a_gather_within_a_machine_runs_at_the_speed_of_its_links():
    network = Network(within_node=8e9, between_nodes=1e6, gpus_per_node=8, latency=0.0)
    assert Collective(gathered_near=8 * 10**9).seconds(network, 64) == 7 / 8


def test_a_step_s_traffic_is_the_sum_of_its_passes_and_its_update():
    traffic = traffic_of(EIGHT_BILLION, SETTING, num_micro_batches=3)
    assert traffic.forward == (NOTHING,) * 3
    parts = (*traffic.forward, *traffic.backward, traffic.update)
    assert tuple(traffic) == parts
    assert traffic.total.reduced == sum(part.reduced for part in parts) == 3 * 2 * NUMBERS
    assert traffic.total.collectives == 3 * 38 + 1  # buckets of 200 million numbers
