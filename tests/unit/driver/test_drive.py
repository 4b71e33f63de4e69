from pathlib import Path

import pytest

from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.drive import drive
from rm_ray.errors import InputError
from rm_ray.runs.layout import FORMAT, RESULT, RUN
from rm_ray.storage import Storage


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(run=RunConfig(name="small", storage_path=str(tmp_path)))


@pytest.fixture
def run_folder(config: TrainConfig) -> Storage:
    return Storage.open(config.run.storage_path).folder(config.run.name)


def test_a_finished_run_returns_its_result_without_starting_ray(
    config: TrainConfig, run_folder: Storage
):
    run_folder.write_json(RESULT, {"steps": 10})

    assert drive(config) == {"steps": 10}


def test_another_configuration_is_refused_before_ray_starts(
    config: TrainConfig, run_folder: Storage
):
    before = config.to_json()
    before["data"]["max_length"] = 100
    run_folder.write_json(RUN, {"format": FORMAT, "config": before})

    with pytest.raises(InputError, match=r"data\.max_length was 100 and is 2048"):
        drive(config)
