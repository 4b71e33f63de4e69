import os
import subprocess
import sys
import time

import psutil
import pytest

from rm_ray.importing import ROOT

BOUND = [sys.executable, "-m", "rm_ray.sweep.bound"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT}

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([*sys.argv[1:], str(os.getpid()), "/bin/sleep", "600"])
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_it_becomes_the_command():
    done = subprocess.run(
        [*BOUND, str(os.getpid()), "/bin/sh", "-c", "echo $1 $0; exit 3", "a", "b"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("b a\n", 3)


def test_it_does_not_start_for_a_parent_that_is_gone():
    done = subprocess.run([*BOUND, "1", "/bin/echo", "begun"], capture_output=True, env=ENVIRONMENT)
    assert (done.stdout, done.returncode) == (b"", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_the_command_is_killed_with_its_parent():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *BOUND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        deadline = time.monotonic() + 240
        while child.name() != "sleep" and time.monotonic() < deadline:
            time.sleep(0.02)
        parent.kill()
    assert not psutil.wait_procs([child], timeout=240)[1]
