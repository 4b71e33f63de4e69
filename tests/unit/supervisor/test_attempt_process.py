import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from moved_clock import MovedClock

from rm_ray.supervisor import attempt_process
from rm_ray.supervisor.attempt_process import describe_exit, read_changes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovedClock:
    found = MovedClock()
    monkeypatch.setattr(attempt_process, "time", found)
    return found


Start = Callable[..., subprocess.Popen[str]]
"""Starts a shell with a script."""

LIVES = """while read go && [ $go = go ]; do echo '{"lives": true}' >&9; done"""
"""Tells once for each "go" that it lives, until another word."""


@pytest.mark.parametrize(
    ("status", "told"), [(-9, "SIGKILL"), (-15, "SIGTERM"), (-11, "SIGSEGV"), (3, "exit status 3")]
)
def test_an_exit_is_described_by_signal_name_or_status(status: int, told: str):
    assert describe_exit(status) == told


def telling(start: Start, script: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that reports on descriptor 9; return it and the descriptor to read."""
    reading, writing = os.pipe()
    process = start(f"exec 9>&{writing} {writing}>&-; {script}", pass_fds=[writing])
    os.close(writing)
    return process, reading


def test_reports_are_yielded_until_the_attempt_ends(start: Start):
    script = """echo '{"step": 1}' >&9; echo '{"step": 2}' >&9; echo '{"ending": "lost"}' >&9"""
    process, reading = telling(start, script)

    assert list(read_changes(process, reading)) == [{"step": 1}, {"step": 2}, {"ending": "lost"}]
    assert process.returncode == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_a_line_truncated_by_a_kill_is_ignored(start: Start):
    process, reading = telling(start, """printf '{"step": 1}\n{"step"' >&9; kill -9 $$""")

    assert list(read_changes(process, reading)) == [{"step": 1}]
    assert process.returncode == -signal.SIGKILL


def test_a_line_may_come_in_parts(start: Start):
    script = """printf '{"st' >&9; read go; printf 'ep": 1}\n{"step": 2}\n' >&9; read end"""
    process, reading = telling(start, script)
    process.stdin.write("go\n")
    process.stdin.flush()
    told = read_changes(process, reading)

    assert [next(told), next(told)] == [{"step": 1}, {"step": 2}]
    process.stdin.write("end\n")
    process.stdin.flush()
    assert list(told) == []


def test_a_line_may_be_longer_than_one_read(start: Start, tmp_path: Path):
    result = {"ending": "finished", "result": {"history": "x" * 300_000}}
    (tmp_path / "line").write_text(json.dumps(result) + "\n")
    process, reading = telling(start, f"cat {tmp_path / 'line'} >&9")

    assert list(read_changes(process, reading)) == [result]


@pytest.mark.parametrize("last", ['{"num_workers": 2}', '{"step": 3, "ending": "finished"}'])
def test_an_attempt_that_is_not_training_need_not_report_progress(
    start: Start, clock: MovedClock, last: str
):
    cause = """echo '{"cause": "x"}' >&9"""
    process, reading = telling(start, f"echo '{last}' >&9; {LIVES}; {cause}")
    told = filter(None, read_changes(process, reading, every_s=0.02, quiet_for_s=100))

    assert next(told) == json.loads(last)
    assert process.stdin is not None
    for _ in range(3):
        clock.now += 60
        process.stdin.write("go\n")
        process.stdin.flush()
        assert next(told) == {"lives": True}
    process.stdin.write("end\n")
    process.stdin.flush()
    assert list(told) == [{"cause": "x"}]
    assert process.returncode == 0


@pytest.mark.parametrize(
    "first", ['{"step": 1}', '{"num_workers": 2}', '{"step": 3, "ending": "finished"}']
)
def test_an_attempt_without_signs_of_life_is_killed(start: Start, clock: MovedClock, first: str):
    process, reading = telling(start, f"""echo '{first}' >&9; trap '' TERM; read never""")
    told = read_changes(process, reading, every_s=0.02, quiet_for_s=100)

    assert next(filter(None, told)) == json.loads(first)
    clock.now += 99
    assert [next(told), next(told)] == [{}, {}]
    assert process.poll() is None
    clock.now += 2
    assert list(filter(None, told)) == []
    assert process.returncode == -signal.SIGKILL


def test_an_attempt_that_is_alive_but_makes_no_progress_is_killed(start: Start, clock: MovedClock):
    process, reading = telling(start, f"""echo '{{"step": 1}}' >&9; {LIVES}""")
    told = filter(None, read_changes(process, reading, every_s=0.02, quiet_for_s=100))

    assert next(told) == {"step": 1}
    assert process.stdin is not None
    for seconds in (60, 39):
        clock.now += seconds
        process.stdin.write("go\n")
        process.stdin.flush()
        assert next(told) == {"lives": True}
    clock.now += 2
    assert list(told) == []
    assert process.returncode == -signal.SIGKILL


def test_silence_yields_empty_reports(start: Start):
    process, reading = telling(start, "read go")
    told = read_changes(process, reading, every_s=0.02)

    assert [next(told) for _ in range(3)] == [{}, {}, {}]
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert list(filter(None, told)) == []
