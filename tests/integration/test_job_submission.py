"""A Ray cluster with token authentication on loopback, and the debug recipe submitted to it."""

import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import RAY, RayMachines, wait_for_answer, without_ray

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machines() -> Iterator[RayMachines]:
    """``ray start --head`` beside whatever else runs here."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        machines = RayMachines(Path(folder))
        with machines.node(num_cpus=4, is_head=True):
            yield machines


@pytest.mark.timeout(1200)  # the whole recipe, beside the unit tests
def test_the_debug_recipe_runs_as_a_submitted_job(machines: RayMachines, tmp_path: Path) -> None:
    """With lists among what it holds out."""
    jobs = f"{machines.dashboard}/api/jobs/"
    wait_for_answer(jobs, Authorization=f"Bearer {machines.token}")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(jobs, timeout=5)
    assert refusal.value.code == 401
    storage = tmp_path / "storage"
    command = [
        RAY, "job", "submit", "--address", machines.dashboard, "--working-dir", str(ROOT), "--",
        sys.executable, "jobs/train.py", "--recipe", "jobs/recipes/debug.yaml",
        "--run.name", "submitted", "--run.storage_path", str(storage), "--optimizer.epochs", "1",
        "--cluster.num_workers", "2", "--cluster.cpus_per_worker", "1",
        "--data.eval", "builtin:test", "builtin:scores=10",
    ]  # fmt: skip
    environment = without_ray() | machines.auth
    job = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "step 94/94 · episode 6,000" in job.stdout
    assert "run 'submitted': 94 steps, 6,000 pairs" in job.stdout
    assert "succeeded" in job.stdout
    result = json.loads((storage / "submitted" / "result.json").read_text())
    assert (result["steps"], result["episodes"], result["eval_pairs"]) == (94, 6_000, 510)
    started = json.loads((storage / "submitted" / "run.json").read_text())["config"]["cluster"]
    assert (result["workers"], started["zero_stage"]) == (2, 0), "DDP, by 'auto'"
    assert result["metrics"]["eval/rm/accuracy"] >= 0.90
    assert -1 <= result["metrics"]["eval/rm/kendall_tau"] <= 1
    assert result["times_each_pair_was_trained_on"] == {"least": 1, "most": 1}
    assert Path(result["export"], "model.safetensors").is_file()
