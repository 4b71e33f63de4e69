import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from rm_ray.driver.hung_workers import kill_worker

SECONDS = 240
"""How long a process may take on a busy machine before the test fails, in seconds."""

Start = Callable[..., subprocess.Popen[str]]
"""Starts a shell with a script."""


def test_a_stopped_worker_is_killed_too(start: Start):
    worker = start("echo begun; exec -a ray::RayTrainWorker sleep 60")
    assert worker.stdout.readline() == "begun\n"
    while not Path(f"/proc/{worker.pid}/cmdline").read_bytes().startswith(b"ray::"):
        pass  # wait for exec: until then it is the shell, which names the worker too
    os.kill(worker.pid, signal.SIGSTOP)

    kill_worker(worker.pid)

    assert worker.wait(SECONDS) == -signal.SIGKILL


def test_a_process_that_reuses_a_workers_pid_survives(start: Start):
    other = start("echo begun; read end")
    assert other.stdout.readline() == "begun\n"

    kill_worker(other.pid)

    other.stdin.write("end\n")
    other.stdin.flush()
    assert other.wait(SECONDS) == 0


def test_killing_an_exited_worker_is_not_an_error(start: Start):
    gone = start("exit 0")
    gone.wait(SECONDS)

    kill_worker(gone.pid)
