"""A Ray cluster with token authentication on loopback, and the debug recipe submitted to it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A running head node."""

    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[str]:
    """Ports outside 10002-19999, which Ray gives to its workers."""
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [str(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@pytest.fixture
def head() -> Iterator[Head]:
    """``ray start --head`` beside whatever else runs here; ended with all its processes."""
    gcs, dashboard, agent, agent_grpc, metrics, client = free_ports(6)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command = [
            RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4",
            "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
        ]  # fmt: skip
        with Path(folder, "head.log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield Head(f"http://127.0.0.1:{dashboard}", environment)
        finally:
            family = [process, *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            for member in family[1:]:
                if member.is_running():
                    member.terminate()
            psutil.wait_procs(family[1:], timeout=20)
            for member in family:
                if member.poll() is None if member is process else member.is_running():
                    member.kill()
            process.wait()


def wait_for(head: Head) -> None:
    """Ask until the job server answers, with the token."""
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/",
        headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"},
    )
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            subprocess.run(["sleep", "0.2"], check=True)
    raise TimeoutError(f"no job server at {head.dashboard}")


def test_the_debug_recipe_runs_as_a_submitted_job(head: Head, tmp_path: Path) -> None:
    wait_for(head)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=5)
    assert refusal.value.code == 401
    storage = tmp_path / "storage"
    command = [
        RAY, "job", "submit", "--address", head.dashboard, "--working-dir", str(ROOT), "--",
        sys.executable, "jobs/train.py", "--recipe", "jobs/recipes/debug.yaml",
        "--run.name", "submitted", "--run.storage_path", str(storage),
    ]  # fmt: skip
    job = subprocess.run(command, env=head.environment, capture_output=True, text=True, check=False)
    assert job.returncode == 0, job.stdout + job.stderr
    assert "step 282/282 · episode 18,000" in job.stdout
    assert "run 'submitted': 282 steps, 18,000 pairs" in job.stdout
    assert "succeeded" in job.stdout
    result = json.loads((storage / "submitted" / "result.json").read_text())
    assert (result["steps"], result["episodes"], result["eval_pairs"]) == (282, 18_000, 500)
    assert result["metrics"]["eval/rm/accuracy"] >= 0.90
    assert Path(result["export"], "model.safetensors").is_file()
