import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.layout import FORMAT, RESULT, RUN
from rm_ray.storage import Storage

ROOT = Path(__file__).resolve().parents[3]


def attempt(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Run an attempt as the supervisor does; return its reports."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "rm_ray.driver.attempt", str(writing)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[writing],
        cwd=ROOT,
        text=True,
    )
    os.close(writing)
    with process, os.fdopen(reading) as lines:
        assert process.stdin is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        told = [json.loads(line) for line in lines]
    assert process.returncode == 0
    return told


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(run=RunConfig(name="small", storage_path=str(tmp_path)))


@pytest.fixture
def task(config: TrainConfig) -> dict[str, Any]:
    return {"config": config.to_json(), "number": 1, "began": 1000.0, "earlier": []}


def test_an_attempt_reports_its_result(task: dict[str, Any], tmp_path: Path):
    Storage.open(str(tmp_path)).folder("small").write_json(RESULT, {"steps": 10})

    assert attempt(task) == [{"ending": "finished", "cause": "", "result": {"steps": 10}}]


def test_an_attempt_reports_wrong_input(task: dict[str, Any], config: TrainConfig, tmp_path: Path):
    before = config.to_json()
    before["data"]["max_length"] = 100
    run_folder = Storage.open(str(tmp_path)).folder("small")
    run_folder.write_json(RUN, {"format": FORMAT, "config": before})

    (told,) = attempt(task)
    assert told["ending"] == "refused"
    assert "data.max_length was 100 and is 2048" in told["cause"]
