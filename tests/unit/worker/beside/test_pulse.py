"""An evaluator that hangs ends its process; one that is slow does not."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rm_ray.worker.beside import pulse
from rm_ray.worker.beside.pulse import Pulse

ROOT = Path(__file__).resolve().parents[4]


def run(script: str, limit_s: float = 1.0) -> subprocess.CompletedProcess[str]:
    program = f"""
import time
from rm_ray.worker.beside.pulse import Pulse

pulse = Pulse(limit_s={limit_s})

def work():
    {script}

pulse.move()
work()
"""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240
    )


def test_a_process_without_progress_ends_and_shows_where_it_hung():
    ended = run("time.sleep(50)")
    assert ended.returncode == 1
    assert "Timeout (0:00:01)!" in ended.stderr
    assert "in work" in ended.stderr


def test_a_process_with_progress_goes_on():
    ended = run("[(time.sleep(0.2), pulse.move()) for _ in range(25)]", limit_s=4.5)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_took_longer_before_extends_the_limit(monkeypatch: pytest.MonkeyPatch):
    armed: list[float] = []
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(
        pulse.faulthandler, "dump_traceback_later", lambda limit, exit: armed.append(limit)
    )
    one = Pulse(limit_s=600)
    for passed in (5_000, 100, 200, 10):  # nothing is watched before the first one
        now += passed
        one.move()
    assert armed == [600, 600, 1000, 1000]
