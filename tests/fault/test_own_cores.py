"""A run with a Ray of its own, on a machine of few cores: its worker trains on one of them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from outcomes import result

from rm_ray.cluster.cores import are_whole, take

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def two() -> list[int]:
    """The cores of a machine of two, on which no other run trains."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) != 2 or not are_whole(cores):
        pytest.skip("a worker of one core has it for itself on a machine of two whole ones")
    with ExitStack() as stack:
        if not take(cores, stack):
            pytest.skip("another run on this machine trains on its core")
    return cores


def cores_of(process: psutil.Process) -> Iterator[set[int]]:
    """Yield the cores of each thread."""
    with suppress(psutil.Error):
        for thread in process.threads():
            with suppress(OSError):
                yield os.sched_getaffinity(thread.id)


def test_the_worker_trains_on_its_own_core_and_ray_keeps_to_the_other(tmp_path: Path, two):
    first, last = two
    command = [
        sys.executable, str(ROOT / "jobs" / "train.py"),
        "--recipe", str(ROOT / "jobs" / "recipes" / "debug.yaml"), "--run.name", "own",
        "--run.storage_path", str(tmp_path), "--optimizer.max_episodes", "1600",
        "--evaluation.every_steps", "0", "--cluster.cpus_per_worker", "1",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log, seen = tmp_path / "log.txt", set()
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment) as run,
    ):
        while run.poll() is None:
            with suppress(psutil.Error):
                for each in psutil.Process(run.pid).children(recursive=True):
                    for cores in cores_of(each):
                        if cores in ({first}, {last}):
                            seen.add((each.name()[:15], *cores))
            time.sleep(0.2)
    assert run.returncode == 0, log.read_text()
    assert {("raylet", first), ("gcs_server", first), ("ray::RayTrainWo", first)} <= seen
    assert {name for name, core in seen if core == last} == {"ray::RayTrainWo"}
    assert result(tmp_path / "own")["steps"] == 25
