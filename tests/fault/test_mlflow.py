"""MLflow is killed, frozen, or never there: no step waits, and no point is lost or doubled."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from jobs import ROOT, Job, finish, history, result, running, small_job

pytestmark = pytest.mark.slow


@dataclass
class Server:
    """A real MLflow server on loopback, which may be away."""

    folder: Path
    port: int = field(default_factory=lambda: free_port())

    @property
    def address(self) -> str:
        """Where it listens, whether it runs or not."""
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[list[psutil.Process]]:
        """Give its processes."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port",
            str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--workers", "1", "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        quick = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("a") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quick)
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        try:
            yield tree
        finally:
            for process in tree:
                if process.is_running():
                    process.kill()
            server.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def points(server: Server, run_id: str, name: str) -> list[int]:
    """The steps of a metric's points, in order."""
    found = mlflow.MlflowClient(server.address).get_metric_history(run_id, name)
    return sorted(point.step for point in found)


def check(server: Server, outcome: dict[str, Any]) -> None:
    """Every metric of every record is there, once."""
    (run,) = mlflow.MlflowClient(server.address).search_runs(
        [mlflow.MlflowClient(server.address).get_experiment_by_name("faults").experiment_id]
    )
    records = history(Path(outcome["folder"]))
    assert run.data.params["run.name"] == outcome["name"]
    for kind, name in (("train", "train/rm/loss"), ("eval", "eval/rm/accuracy")):
        steps = [record["step"] for record in records if record["kind"] == kind]
        assert points(server, run.info.run_id, name) == steps


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def job_with(server: Server, name: str) -> dict[str, Any]:
    settings = small_job(server.folder, name, num_steps=600)
    settings["mlflow"]["tracking_uri"] = server.address
    settings["checkpoint"]["every_steps"] = 100
    return settings


def wait_for_step(job: Job, step: int) -> None:
    """Wait until the live line has got so far."""

    def has_come() -> bool:
        shown = [line for line in job.printed.splitlines() if line.startswith("step ")]
        return any(int(line.split()[1].partition("/")[0]) >= step for line in shown)

    job.wait_for(has_come, f"step {step}")


def test_a_server_that_is_killed_and_comes_back_has_every_point_once(server: Server) -> None:
    with running(job_with(server, "killed"), server.folder / "killed.log") as job:
        with server.running():
            wait_for_step(job, 50)
        wait_for_step(job, 250)
        with server.running():
            assert job.wait() == 0, job.printed
            check(server, result(job.folder))


def test_a_server_that_is_frozen_holds_nothing_up(server: Server) -> None:
    log = server.folder / "frozen.log"
    with running(job_with(server, "frozen"), log) as job, server.running() as processes:
        wait_for_step(job, 50)
        for process in processes:
            process.suspend()
        wait_for_step(job, 400)
        for process in processes:
            process.resume()
        assert job.wait() == 0, job.printed
        check(server, result(job.folder))


def test_a_server_that_never_comes_is_brought_up_to_date_by_one_command(server: Server) -> None:
    outcome = finish(job_with(server, "never"), server.folder / "never.log")
    assert outcome["mlflow_run_id"] is None
    command = [sys.executable, str(ROOT / "jobs" / "log_to_mlflow.py"), outcome["folder"]]
    with server.running():
        for _ in range(2):  # the second time there is nothing to do
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            check(server, outcome)
