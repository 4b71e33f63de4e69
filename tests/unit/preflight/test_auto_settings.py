"""Settings that are 'auto', chosen by the models of memory and time."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import CHOSEN, TrainConfig, flatten
from rm_ray.data.cache.pair_tokens import PairLengths
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import usable
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import preferred
from rm_ray.estimate.workload import measure_workload
from rm_ray.preflight.auto_settings import Room, choose, find_room, predict_ways
from rm_ray.preflight.machines import KIND, Machine
from rm_ray.preflight.resolve import keep_choices
from rm_ray.preflight.run_estimate import architecture_of, forward_pass_of, memory_setting
from rm_ray.runs.record import refuse_other_config
from rm_ray.storage import Storage

GIGABYTE = 10**9

OPEN = {"zero_stage": "auto", "zero_secondary_partition": "auto"}

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4_096, "intermediate_size": 14_336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128_264, "num_labels": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Known:
    """Of what is prepared, the part that choices depend on."""

    config: TrainConfig
    plan: Plan
    classifier: Any
    tokenizer: range


def known(*, workers: int, use_gpu: bool = True, recomputes: Any = "auto", **cluster: Any) -> Any:
    config = parse_config(
        {
            "model": {
                "name_or_path": "some/model",
                "dtype": "bfloat16",
                "gradient_checkpointing": recomputes,
            },
            "cluster": {"num_workers": workers, "use_gpu": use_gpu, **OPEN, **cluster},
        }
    )
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(**LLAMA_8B)
        )
    rng = np.random.default_rng(0)
    prefix = rng.integers(50, 400, 2_000)
    lengths = PairLengths(
        chosen=prefix + rng.integers(20, 300, 2_000),
        rejected=prefix + rng.integers(20, 300, 2_000),
        prefix=prefix,
    )
    settings = PlanSettings(global_batch_size=256, tokens_per_micro_batch=8_192)
    plan = Plan(lengths=lengths, settings=settings)
    return Known(config=config, plan=plan, classifier=classifier, tokenizer=range(1_000))


def chosen(resolved: Any, room: Room, *, num_workers: int = 64) -> tuple[Any, ...]:
    settings = flatten(choose(resolved, room, num_workers=num_workers).config.to_json())
    return tuple(settings[name] for name in CHOSEN)


def settled(resolved: Any) -> Any:
    """The same with plain settings in place of 'auto'."""
    config = resolved.config
    cluster = replace(config.cluster, zero_stage=0, zero_secondary_partition=False)
    model = replace(config.model, gradient_checkpointing=False)
    return replace(resolved, config=replace(config, cluster=cluster, model=model))


def needed(resolved: Any, config: TrainConfig, num_workers: int) -> int:
    """Bytes that a worker of these settings takes of its device, estimated anew."""
    settled = replace(resolved, config=config)
    workload = measure_workload(resolved.plan, world_size=num_workers, most_steps=40)
    setting = memory_setting(settled, workload, world_size=num_workers)
    row = forward_pass_of(settled, workload, setting)
    return estimate(architecture_of(settled), row, setting).device


def test_eight_billion_on_64_gpus_take_the_lowest_stage_of_those_nearly_as_fast(caplog):
    room, resolved = Room(gpu_memory=80 * GIGABYTE), known(workers=64)
    with caplog.at_level("INFO", logger="rm_ray"):
        assert chosen(resolved, room) == (2, False, False)
    assert "ways that fit the simplest predicted within 10% of the fastest: " in caplog.text


def test_what_auto_takes_is_what_the_table_recommends():
    room, resolved = Room(gpu_memory=80 * GIGABYTE), known(workers=64)
    best = preferred(predict_ways(settled(resolved), room, num_workers=64))
    assert best is not None
    setting = best.setting
    assert chosen(resolved, room) == (
        setting.zero_stage,
        setting.secondary_over > 0,
        setting.checkpointing,
    )


def test_the_network_of_a_choice_is_that_of_the_cluster_s_own_machines():
    machines = [
        Machine(node_id="a", name="a", resources={"GPU": 4, "CPU": 64, f"{KIND}H100": 1}),
        Machine(node_id="b", name="b", resources={"CPU": 64}),
    ]
    room = find_room(known(workers=8).config, machines)
    assert room.network == Network.assumed(gpus_per_node=4)


@pytest.mark.parametrize("gigabytes", [40, 80, 141])
def test_what_is_chosen_fits(gigabytes: int):
    resolved, room = known(workers=8), Room(gpu_memory=gigabytes * GIGABYTE)
    config = choose(resolved, room, num_workers=8).config
    assert needed(resolved, config, 8) <= usable(gigabytes * GIGABYTE)


def test_what_is_set_stays_and_the_rest_is_chosen_around_it():
    room = Room(gpu_memory=80 * GIGABYTE)
    assert chosen(known(workers=64, recomputes=True), room)[2] is True
    assert chosen(known(workers=64, zero_stage=2, zero_secondary_partition=False), room) == (
        2,
        False,
        False,
    )
    assert chosen(known(workers=64, zero_secondary_partition=True), room)[:2] == (3, True)


def test_where_nothing_fits_what_needs_the_least_is_taken():
    resolved = known(workers=8)
    config = choose(resolved, Room(gpu_memory=4 * GIGABYTE), num_workers=8).config
    assert (config.cluster.zero_stage, config.model.gradient_checkpointing) == (3, True)


def test_cpus_take_plain_data_parallelism_unless_their_memory_is_too_small():
    resolved = known(workers=2, use_gpu=False)
    assert chosen(resolved, Room(), num_workers=2) == (0, False, False)
    config = choose(resolved, Room(machine_memory=150 * GIGABYTE), num_workers=2).config
    assert config.cluster.stage > 0
    assert needed(resolved, config, 2) <= 150 * GIGABYTE


def test_gpus_of_unknown_memory_need_a_value():
    with pytest.raises(InputError, match=r"zero_stage and .* cannot be 'auto': it is not known"):
        choose(known(workers=8), Room(), num_workers=8)


def test_a_second_partition_needs_several_machines():
    room = Room(gpu_memory=80 * GIGABYTE)
    with pytest.raises(InputError, match="takes several machines"):
        choose(known(workers=8, zero_secondary_partition=True), room, num_workers=8)


def test_settings_without_auto_stay_as_they_are():
    resolved = known(workers=8, recomputes=False, zero_stage=1, zero_secondary_partition=False)
    assert choose(resolved, Room(), num_workers=8) is resolved


def test_a_resumed_run_keeps_what_was_chosen(tmp_path):
    asked = known(workers=64).config
    config = choose(known(workers=64), Room(gpu_memory=80 * GIGABYTE), num_workers=64).config
    run_folder = Storage.open(str(tmp_path))
    run_folder.write_json("run.json", {"config": config.to_json()})
    refuse_other_config(run_folder, asked)
    kept = flatten(keep_choices(asked, run_folder).to_json())
    assert tuple(kept[name] for name in CHOSEN) == (2, False, False)
    other = replace(asked, cluster=replace(asked.cluster, zero_stage=1))
    kept = flatten(keep_choices(other, run_folder).to_json())
    assert tuple(kept[name] for name in CHOSEN) == (1, False, False)


def test_auto_and_offload_do_not_go_together():
    with pytest.raises(InputError, match=r"cluster\.offload must be 'none' where .* is 'auto'"):
        parse_config({"cluster": {"zero_stage": "auto", "offload": "optimizer"}})
