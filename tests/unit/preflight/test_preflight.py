"""The parts of a preflight that need no cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planned_runs import plan_run

from rm_ray.cluster.gpus import Gpu
from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import TrainConfig
from rm_ray.estimate.network import Network
from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.machines import Machine, MachineReport
from rm_ray.preflight.options import PreflightCommand
from rm_ray.preflight.preflight import (
    find_gpu_memory,
    find_network,
    hardware_of,
    keep_earlier_choices,
)
from rm_ray.storage import Storage

AUTO = {"zero_stage": "auto", "zero_secondary_partition": "auto"}
FOUR_GPUS = Machine(node_id="a", name="a", resources={"GPU": 4, "CPU": 64})


def settings(path: Path, **cluster: Any) -> TrainConfig:
    return parse_config(
        {
            "run": {"name": "mine", "storage_path": str(path)},
            "model": {"name_or_path": "some/model"},
            "cluster": {"num_workers": 8, **AUTO, **cluster},
        }
    )


def test_the_choices_of_an_earlier_attempt_are_kept(tmp_path):
    asked = settings(tmp_path)
    assert keep_earlier_choices(asked) == asked
    began = replace(
        asked,
        cluster=replace(asked.cluster, zero_stage=2, zero_secondary_partition=False, use_gpu=True),
    )
    Storage.open(str(tmp_path)).folder("mine").write_json("run.json", {"config": began.to_json()})
    kept = keep_earlier_choices(asked).cluster
    assert (kept.zero_stage, kept.use_gpu) == (2, True)


def test_an_unreadable_storage_is_left_to_its_own_check(tmp_path):
    (tmp_path / "file").write_text("no folder")
    asked = settings(tmp_path / "file" / "runs")
    assert keep_earlier_choices(asked) == asked


@pytest.mark.parametrize(
    ("machines", "network", "expected"),
    [
        ([FOUR_GPUS], None, Network.assumed(gpus_per_node=4)),
        ([], None, Network.assumed(gpus_per_node=2)),
        ([FOUR_GPUS], Network(within_node=1e9, between_nodes=1e8), None),
    ],
)
def test_choices_use_the_given_network_or_assume_one(tmp_path, machines, network, expected):
    config = settings(tmp_path, use_gpu=True)
    command = PreflightCommand(config=config, gpus_per_node=2)
    hardware = hardware_of(command, config, machines, network, gpu_memory=80 * 10**9)
    assert hardware.network == (expected or network)
    assert hardware.gpu_memory == 80 * 10**9


def test_the_smallest_gpu_counts_unless_its_memory_is_given():
    def report(*sizes: int | None) -> MachineReport:
        gpus = (Gpu(name="x", memory=size, driver="570", capability=9.0) for size in sizes)
        return MachineReport(gpus=tuple(gpus))

    reports = [report(80, 24), report(40), report()]
    assert find_gpu_memory(None, reports) == 24
    assert find_gpu_memory(None, [*reports, report(None)]) is None
    assert find_gpu_memory(None, []) is None
    assert find_gpu_memory(141.0, reports) == 141 * 10**9


def test_a_network_is_not_measured_on_another_cluster(tmp_path):
    planned = plan_run(tmp_path, cluster={"num_workers": 8})
    verdicts: list[Verdict] = []
    command = PreflightCommand(measure_network=True)
    assert find_network(command, planned, verdicts, is_elsewhere=True) is None
    assert [(v.name, v.outcome) for v in verdicts] == [("network", "warning")]


def test_a_network_that_cannot_be_measured_fails(tmp_path):
    planned = plan_run(tmp_path, cluster={"num_workers": 1})
    verdicts: list[Verdict] = []
    command = PreflightCommand(measure_network=True)
    assert find_network(command, planned, verdicts, is_elsewhere=False) is None
    assert [(v.name, v.outcome) for v in verdicts] == [("network", "failed")]
    assert "needs at least two workers" in verdicts[0].found


def test_a_given_network_needs_no_check(tmp_path):
    command = PreflightCommand(within_node_gb_per_s=450, between_nodes_gb_per_s=50)
    verdicts: list[Verdict] = []
    planned = plan_run(tmp_path, cluster={"num_workers": 8})
    assert find_network(command, planned, verdicts, is_elsewhere=False) == command.network
    assert verdicts == []
