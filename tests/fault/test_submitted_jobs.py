"""Jobs submitted to a cluster like KubeRay's: a head that has no CPUs to give, and a worker."""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from outcomes import assert_same_outcome, result
from servers import RAY, RayMachines, wait_for_answer, without_ray

from jobs import PATIENCE_S, ROOT, Job, finish, small_job

pytestmark = pytest.mark.slow

STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}


def job_command(machines: RayMachines, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``ray job``."""
    return subprocess.run(
        [RAY, "job", words[0], "--address", machines.dashboard, *words[1:]],
        env=without_ray() | machines.auth,
        capture_output=True,
        text=True,
    )


@contextmanager
def submitted(
    machines: RayMachines, job_id: str, settings: dict, log: Path, *options: str
) -> Iterator[Job]:
    """``ray job submit``, which follows the job's log until that ends."""
    recipe = log.with_suffix(".yaml")
    recipe.write_text(json.dumps(settings))
    command = [
        RAY, "job", "submit", "--address", machines.dashboard, "--submission-id", job_id,
        *options, "--working-dir", str(ROOT), "--",
        sys.executable, "jobs/train.py", "--recipe", str(recipe),
    ]  # fmt: skip
    with log.open("wb") as output:
        client = subprocess.Popen(
            command, env=without_ray() | machines.auth, stdout=output, stderr=output
        )
    folder = Path(settings["run"]["storage_path"]) / settings["run"]["name"]
    try:
        yield Job(settings, folder, log, client)
    finally:
        client.kill()
        client.wait()


@pytest.fixture
def machines() -> Iterator[RayMachines]:
    """The head and the worker, each a ``ray start`` of its own, with token authentication."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as stack:
        machines = RayMachines(Path(folder))
        stack.enter_context(machines.node(num_cpus=0, is_head=True, **STOP_WAIT))
        stack.enter_context(machines.node(num_cpus=4, **STOP_WAIT))
        machines.wait_for_nodes(2)
        wait_for_answer(f"{machines.dashboard}/api/jobs/", Authorization=f"Bearer {machines.token}")
        yield machines


def test_a_job_that_is_stopped_saves_and_the_same_command_resumes_it(
    machines: RayMachines, tmp_path: Path
) -> None:
    settings = small_job(tmp_path, "stopped", num_steps=100)
    settings["checkpoint"]["every_steps"] = 0
    with submitted(machines, "first", settings, tmp_path / "first.log") as job:
        job.wait_for_steps_of_attempt(1)
        stopped = job_command(machines, "stop", "first")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        job.wait()
        said = re.search(
            r"terminated at step (\d+); its newest checkpoint is from step \1;", job.printed
        )
        assert said is not None, job.printed
    assert "Job 'first' was stopped" in job_command(machines, "status", "first").stdout
    (saved,) = job.checkpoints()
    assert f"{int(said[1]):08d}" in saved.name

    with submitted(machines, "second", settings, tmp_path / "second.log") as job:
        assert job.wait() == 0, job.printed
        assert f"resumed from the checkpoint of step {said[1]}" in job.printed
        assert "Job 'second' succeeded" in job.printed
    assert [a["cause"] for a in result(job.folder)["attempts"]] == ["terminated", ""]

    quiet = small_job(tmp_path, "quiet", num_steps=100)
    finish(quiet, tmp_path / "quiet.log")
    assert_same_outcome(job.folder, tmp_path / "quiet")


def test_a_machine_that_is_told_to_end_leads_to_a_checkpoint(tmp_path: Path) -> None:
    """As when Kubernetes evicts a pod: SIGTERM to ``ray start --block``, and time to answer it."""
    settings = small_job(tmp_path, "evicted", num_steps=400)
    settings["checkpoint"]["every_steps"] = 0
    time_to_save = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "60"}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, ExitStack() as stack:
        machines = RayMachines(Path(folder))
        stack.enter_context(machines.node(num_cpus=0, is_head=True))
        leaving = stack.enter_context(machines.node(num_cpus=2, **time_to_save))
        machines.wait_for_nodes(2)
        with submitted(machines, "evicted", settings, tmp_path / "evicted.log") as job:
            job.wait_for_steps_of_attempt(1)
            leaving.send_signal(signal.SIGTERM)
            stack.enter_context(machines.node(num_cpus=2))  # comes in its place
            assert job.process.wait(2 * PATIENCE_S) == 0, job.printed
        assert leaving.wait(PATIENCE_S) is not None
    first, second = result(job.folder)["attempts"]
    assert first["cause"] == "preempted"
    assert second["first_step"] == first["last_step"] > 0
