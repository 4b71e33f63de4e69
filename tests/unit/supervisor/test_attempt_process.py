import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rm_ray.supervisor.attempt_process import describe_exit, read_changes

Start = Callable[..., subprocess.Popen[str]]
"""Starts a shell with a script."""


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


def test_an_attempt_that_falls_silent_while_training_is_killed(start: Start):
    process, reading = telling(start, """echo '{"step": 1}' >&9; trap '' TERM; read never""")

    assert list(filter(None, read_changes(process, reading, every_s=0.05, quiet_for_s=0.2))) == [
        {"step": 1}
    ]
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("last", ['{"num_workers": 2}', '{"step": 3, "ending": "finished"}'])
def test_an_attempt_that_is_not_training_need_not_report_progress(start: Start, last: str):
    lives = """for i in 1 2 3 4 5 6; do sleep 0.1; echo '{"lives": true}' >&9; done"""
    process, reading = telling(
        start, f"""echo '{last}' >&9; {lives}; echo '{{"cause": "x"}}' >&9"""
    )

    told = [
        changed
        for changed in read_changes(process, reading, every_s=0.02, quiet_for_s=0.4)
        if changed not in ({}, {"lives": True})
    ]
    assert told == [json.loads(last), {"cause": "x"}]
    assert process.returncode == 0


@pytest.mark.parametrize(
    "first", ['{"step": 1}', '{"num_workers": 2}', '{"step": 3, "ending": "finished"}']
)
def test_an_attempt_without_signs_of_life_is_killed(start: Start, first: str):
    process, reading = telling(start, f"""echo '{first}' >&9; trap '' TERM; read never""")

    assert list(filter(None, read_changes(process, reading, every_s=0.05, quiet_for_s=0.2))) == [
        json.loads(first)
    ]
    assert process.returncode == -signal.SIGKILL


def test_an_attempt_that_is_alive_but_makes_no_progress_is_killed(start: Start):
    lives = """while sleep 0.05; do echo '{"lives": true}' >&9; done"""
    process, reading = telling(start, f"""echo '{{"step": 1}}' >&9; {lives}""")

    told = list(read_changes(process, reading, every_s=0.05, quiet_for_s=0.3))
    assert [changed for changed in told if changed not in ({}, {"lives": True})] == [{"step": 1}]
    assert process.returncode == -signal.SIGKILL


def test_silence_yields_empty_reports(start: Start):
    process, reading = telling(start, "read go")
    told = read_changes(process, reading, every_s=0.02)

    assert [next(told) for _ in range(3)] == [{}, {}, {}]
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert list(filter(None, told)) == []
