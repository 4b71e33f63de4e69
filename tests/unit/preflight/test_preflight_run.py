"""The parts of a preflight that need no cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.recipe import parse_config
from rm_ray.config.train_config import TrainConfig
from rm_ray.estimate.network import Network
from rm_ray.preflight.machines import Machine
from rm_ray.preflight.options import PreflightCommand
from rm_ray.preflight.preflight import _kept, _room
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


def test_what_a_run_chose_as_it_began_is_kept(tmp_path):
    asked = settings(tmp_path)
    assert _kept(asked) == asked
    began = replace(
        asked,
        cluster=replace(asked.cluster, zero_stage=2, zero_secondary_partition=False, use_gpu=True),
    )
    Storage.open(str(tmp_path)).folder("mine").write_json("run.json", {"config": began.to_json()})
    kept = _kept(asked).cluster
    assert (kept.zero_stage, kept.use_gpu) == (2, True)


def test_a_storage_that_cannot_be_read_is_left_to_its_check(tmp_path):
    (tmp_path / "file").write_text("no folder")
    asked = settings(tmp_path / "file" / "runs")
    assert _kept(asked) == asked


@pytest.mark.parametrize(
    ("machines", "network", "expected"),
    [
        ([FOUR_GPUS], None, Network.assumed(gpus_per_node=4)),
        ([], None, Network.assumed(gpus_per_node=2)),
        ([FOUR_GPUS], Network(within_node=1e9, between_nodes=1e8), None),
    ],
)
def test_a_choice_is_made_on_the_network_that_is_known(tmp_path, machines, network, expected):
    config = settings(tmp_path, use_gpu=True)
    command = PreflightCommand(config=config, gpus_per_node=2)
    room = _room(command, config, machines, network, gpu_memory=80 * 10**9)
    assert room.network == (expected or network)
    assert room.gpu_memory == 80 * 10**9
