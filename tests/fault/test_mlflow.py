"""MLflow is killed, frozen, or never there: no step waits, and no point is lost or doubled."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
from outcomes import history, result
from servers import MlflowServer

from jobs import ROOT, Job, finish, running, small_job

pytestmark = pytest.mark.slow


def points(server: MlflowServer, run_id: str, name: str) -> list[int]:
    """The steps of a metric's points, in order."""
    found = mlflow.MlflowClient(server.address).get_metric_history(run_id, name)
    return sorted(point.step for point in found)


def check(server: MlflowServer, outcome: dict[str, Any]) -> None:
    """Every metric of every record is there, once."""
    (run,) = mlflow.MlflowClient(server.address).search_runs(
        [mlflow.MlflowClient(server.address).get_experiment_by_name("faults").experiment_id]
    )
    assert run.info.status == "FINISHED"
    files = mlflow.MlflowClient(server.address).list_artifacts(run.info.run_id)
    assert {"attempts.json", "config.yaml", "plots"} <= {file.path for file in files}
    records = history(Path(outcome["folder"]))
    assert run.data.params["run.name"] == outcome["name"]
    for kind, name in (("train", "train/rm/loss"), ("eval", "eval/rm/accuracy")):
        steps = [record["step"] for record in records if record["kind"] == kind]
        assert points(server, run.info.run_id, name) == steps


@pytest.fixture
def server(tmp_path: Path) -> MlflowServer:
    return MlflowServer(tmp_path)


def job_with(server: MlflowServer, name: str) -> dict[str, Any]:
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


def test_a_server_that_is_killed_and_comes_back_has_every_point_once(server: MlflowServer) -> None:
    with running(job_with(server, "killed"), server.folder / "killed.log") as job:
        with server.running():
            wait_for_step(job, 50)
        wait_for_step(job, 250)
        with server.running():
            assert job.wait() == 0, job.printed
            check(server, result(job.folder))


def test_a_server_that_is_frozen_holds_nothing_up(server: MlflowServer) -> None:
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


def test_a_server_that_never_came_is_brought_up_to_date_by_a_command(
    server: MlflowServer,
) -> None:
    outcome = finish(job_with(server, "never"), server.folder / "never.log")
    assert outcome["mlflow_run_id"] is None
    assert outcome["mlflow_unsent"] > 400  # steps, evaluations and tables
    command = [sys.executable, str(ROOT / "jobs" / "log_to_mlflow.py"), outcome["folder"]]
    with server.running():
        for _ in range(2):  # the second time there is nothing to do
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            check(server, outcome)
        found = result(Path(outcome["folder"]))
        assert found["mlflow_run_id"] is not None
        assert found["mlflow_unsent"] == 0
