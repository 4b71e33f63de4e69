"""Resolution of 'auto' settings by the models of memory and time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_runs import plan_run

from rm_ray.config.fields import flatten
from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import AUTO_NAMES, ResolvedConfig
from rm_ray.errors import InputError
from rm_ray.estimate.gpu_memory import usable_memory
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.network import Network
from rm_ray.estimate.prediction import prefer
from rm_ray.estimate.workload import measure_workload
from rm_ray.preflight.auto_settings import (
    Hardware,
    choose,
    find_hardware,
    keep_choices,
    predict_ways,
)
from rm_ray.preflight.estimate_inputs import architecture_of, forward_pass_of, memory_setting
from rm_ray.preflight.machines import KIND, Machine
from rm_ray.preflight.resolved_run import PlannedRun
from rm_ray.runs.record import refuse_other_config
from rm_ray.storage import Storage

GIGABYTE = 10**9

OPEN = {"zero_stage": "auto", "zero_secondary_partition": "auto"}

Planned = Callable[..., PlannedRun]
"""Plans a run of Llama 8B with every setting 'auto' that can be, unless given."""


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def plan(
        *, workers: int, use_gpu: bool = True, recomputes: Any = "auto", **cluster: Any
    ) -> PlannedRun:
        return plan_run(
            tmp_path,
            model={
                "name_or_path": "some/model",
                "dtype": "bfloat16",
                "gradient_checkpointing": recomputes,
            },
            cluster={"num_workers": workers, "use_gpu": use_gpu, **OPEN, **cluster},
        )

    return plan


def chosen(planned: PlannedRun, hardware: Hardware, *, num_workers: int = 64) -> tuple[Any, ...]:
    settings = flatten(choose(planned, hardware, num_workers=num_workers).config.to_json())
    return tuple(settings[name] for name in AUTO_NAMES)


def needed(planned: PlannedRun, config: ResolvedConfig, num_workers: int) -> int:
    """Return the estimated device bytes of a worker with these settings."""
    resolved = planned.settle(config)
    workload = measure_workload(resolved.plan, world_size=num_workers, most_steps=40)
    setting = memory_setting(resolved, workload, world_size=num_workers)
    row = forward_pass_of(workload, setting)
    return estimate(architecture_of(resolved), row, setting).device


def test_an_8b_model_on_64_gpus_gets_the_lowest_stage_that_is_nearly_fastest(
    planned: Planned, caplog
):
    hardware, run = Hardware(gpu_memory=80 * GIGABYTE), planned(workers=64)
    with caplog.at_level("INFO", logger="rm_ray"):
        assert chosen(run, hardware) == (2, False, False)
    assert "that fit and are predicted within 10% of the fastest: " in caplog.text


def test_auto_chooses_what_the_table_recommends(planned: Planned):
    hardware, run = Hardware(gpu_memory=80 * GIGABYTE), planned(workers=64)
    best = prefer(predict_ways(run.settle(run.config.settle()), hardware, num_workers=64))
    assert best is not None
    setting = best.setting
    assert chosen(run, hardware) == (
        setting.zero_stage,
        setting.secondary_size > 0,
        setting.checkpointing,
    )


def test_the_assumed_network_has_as_many_gpus_per_machine_as_the_cluster(planned: Planned):
    machines = [
        Machine(node_id="a", name="a", resources={"GPU": 4, "CPU": 64, f"{KIND}H100": 1}),
        Machine(node_id="b", name="b", resources={"CPU": 64}),
    ]
    hardware = find_hardware(planned(workers=8).config, machines)
    assert hardware.network == Network.assumed(gpus_per_node=4)


@pytest.mark.parametrize("gigabytes", [40, 80, 141])
def test_the_choice_fits(planned: Planned, gigabytes: int):
    run, hardware = planned(workers=8), Hardware(gpu_memory=gigabytes * GIGABYTE)
    config = choose(run, hardware, num_workers=8).config
    assert needed(run, config, 8) <= usable_memory(gigabytes * GIGABYTE)


def test_fixed_settings_stay_and_only_auto_is_chosen(planned: Planned):
    hardware = Hardware(gpu_memory=80 * GIGABYTE)
    assert chosen(planned(workers=64, recomputes=True), hardware)[2] is True
    assert chosen(planned(workers=64, zero_stage=2, zero_secondary_partition=False), hardware) == (
        2,
        False,
        False,
    )
    assert chosen(planned(workers=64, zero_secondary_partition=True), hardware)[:2] == (3, True)


def test_if_nothing_fits_the_choice_that_needs_the_least_is_taken(planned: Planned):
    run = planned(workers=8)
    config = choose(run, Hardware(gpu_memory=4 * GIGABYTE), num_workers=8).config
    assert (config.cluster.zero_stage, config.model.gradient_checkpointing) == (3, True)


def test_stage_3_is_never_chosen_for_4_bit_weights(tmp_path: Path):
    """Also where nothing else fits, and on CPUs."""
    for use_gpu in (True, False):
        run = plan_run(
            tmp_path,
            model={"name_or_path": "some/model", "dtype": "bfloat16", "quantization": "nf4"},
            lora={"rank": 16},
            cluster={"num_workers": 8, "use_gpu": use_gpu, **OPEN},
        )
        hardware = Hardware(gpu_memory=4 * GIGABYTE, machine_memory=4 * GIGABYTE)
        assert choose(run, hardware, num_workers=8).config.cluster.zero_stage < 3


def test_cpus_use_plain_data_parallelism_unless_memory_is_too_small(planned: Planned):
    run = planned(workers=2, use_gpu=False)
    assert chosen(run, Hardware(), num_workers=2) == (0, False, False)
    config = choose(run, Hardware(machine_memory=150 * GIGABYTE), num_workers=2).config
    assert config.cluster.zero_stage > 0
    assert needed(run, config, 2) <= 150 * GIGABYTE


def test_auto_is_refused_if_gpu_memory_is_unknown(planned: Planned):
    with pytest.raises(
        InputError, match=r"zero_stage and .* cannot be 'auto': the memory of the GPUs"
    ):
        choose(planned(workers=8), Hardware(), num_workers=8)


def test_a_second_partition_needs_several_machines(planned: Planned):
    hardware = Hardware(gpu_memory=80 * GIGABYTE)
    with pytest.raises(InputError, match="needs several machines"):
        choose(planned(workers=8, zero_secondary_partition=True), hardware, num_workers=8)


def test_settings_without_auto_stay_unchanged(planned: Planned):
    run = planned(workers=8, recomputes=False, zero_stage=1, zero_secondary_partition=False)
    assert choose(run, Hardware(), num_workers=8).config.to_json() == run.config.to_json()


def test_a_resumed_run_keeps_its_choices(planned: Planned, tmp_path):
    asked = planned(workers=64).config
    config = choose(planned(workers=64), Hardware(gpu_memory=80 * GIGABYTE), num_workers=64).config
    run_folder = Storage.open(str(tmp_path))
    run_folder.write_json("run.json", {"config": config.to_json()})
    refuse_other_config(run_folder, asked)
    kept = flatten(keep_choices(asked, run_folder).to_json())
    assert tuple(kept[name] for name in AUTO_NAMES) == (2, False, False)
    other = replace(asked, cluster=replace(asked.cluster, zero_stage=1))
    kept = flatten(keep_choices(other, run_folder).to_json())
    assert tuple(kept[name] for name in AUTO_NAMES) == (1, False, False)


def test_auto_cannot_be_combined_with_offload():
    with pytest.raises(InputError, match=r"cluster\.offload must be 'none' if .* is 'auto'"):
        parse_config({"cluster": {"zero_stage": "auto", "offload": "optimizer"}})
