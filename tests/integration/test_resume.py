"""A run that is killed twice on a Ray of its own ends as one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from outcomes import assert_same_outcome
from runs import FinishedRun, check_mlflow, first_checkpoint, small_run

from rm_ray.checkpoint.staging import STAGED
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.manifest import find_fault, read_manifest
from rm_ray.storage import Storage

ROOT = Path(__file__).resolve().parents[2]
NAME = "driver-killed"
RESUMED = "resumed from the checkpoint of step"
PATIENCE_S = 240.0
"""How long anything may take on a busy machine before it is held never to come."""


def kill_a_worker_after_the_first_checkpoint(of: int, folder: Path) -> None:
    """Kill one of the workers that a process has started."""
    deadline = time.monotonic() + PATIENCE_S
    while first_checkpoint(folder) is None:
        assert time.monotonic() < deadline, "there was no checkpoint"
        time.sleep(0.05)
    workers = [
        process
        for process in psutil.Process(of).children(recursive=True)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    workers[0].send_signal(signal.SIGKILL)


def intact_checkpoints(folder: Path) -> list[str]:
    """Those that a run would resume from, the newest first."""
    run_folder = Storage.open(str(folder))
    names = list_checkpoints(run_folder)
    return [
        name
        for name in names
        if find_fault(run_folder, name, read_manifest(run_folder, name)) is None
    ]


@pytest.mark.timeout(1200)  # three attempts at a run, beside the unit tests
def test_a_killed_worker_a_killed_driver_and_a_flipped_bit_change_nothing_in_the_end(
    finished: FinishedRun, storage: Path, mlflow_server: str, tmp_path: Path
) -> None:
    """The command trains on without the worker; again, from before the damaged checkpoint.

    Both are trained under ZeRO-3; the loop's tests on plain ranks do the same under DDP. The
    command is given in a folder of modules that are called like those of libraries, with a folder
    for temporary files that is too long for sockets, on a terminal of ASCII; and the second time by
    another path to its storage.
    """
    settings = small_run(storage, NAME, zero_stage=3)
    settings["mlflow"]["tracking_uri"] = mlflow_server
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(settings))
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--recipe", str(recipe)]
    job_folder = tmp_path / ("job" * 30)
    job_folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"TMPDIR": str(job_folder), "PYTHONIOENCODING": "ascii"}
    elsewhere = tmp_path / "elsewhere"
    for module in ("peft/__init__", "datasets/__init__", "mlflow/__init__", "types", "random"):
        path = elsewhere / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise ImportError('this is not the library')")
    (tmp_path / "linked").symlink_to(storage)
    folder = storage / NAME
    seen: set[str] = set()
    with (tmp_path / "first.log").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=elsewhere)
        kill_a_worker_after_the_first_checkpoint(driver.pid, folder)
        said = tmp_path / "first.log"
        while driver.poll() is None and (len(seen) < 2 or RESUMED not in said.read_text()):
            seen.update(intact_checkpoints(folder))
            time.sleep(0.02)
        children = psutil.Process(driver.pid).children(recursive=True)
        trainers = [child for child in children if "Train" in " ".join(child.cmdline())]
        driver.kill()
        driver.wait()
        assert not psutil.wait_procs(trainers, timeout=60)[1], "they would commit once more"
    assert not (folder / "result.json").exists()
    assert RESUMED in said.read_text()
    for mark in job_folder.rglob(f"*{STAGED}"):
        mark.unlink()  # a copy that the kill left marked would be copied again over the damage
    damaged = folder / intact_checkpoints(folder)[0] / "slices-00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    again = subprocess.run(
        [*command, "--run.storage_path", str(tmp_path / "linked")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=elsewhere,
        check=False,
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Traceback" not in again.stdout + again.stderr
    assert (
        f"{damaged.parent.name} is not used: slices-00001.safetensors does not match"
        in again.stdout
    )
    assert RESUMED in again.stdout
    assert f"run '{NAME}': 20 steps, 306 pairs" in again.stdout
    assert_same_outcome(folder, finished.folder)
    check_mlflow(json.loads((folder / "result.json").read_text()))
    client = mlflow.MlflowClient(mlflow_server)
    runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert [run.info.run_name for run in runs].count(NAME) == 1
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive, "a killed driver leaves no process of its local Ray behind"
