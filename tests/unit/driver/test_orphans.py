import os
import signal
import subprocess
from collections.abc import Callable

import psutil
import pytest

from rm_ray.driver.orphans import adopting, end_orphans

SECONDS = 240
"""How long a process may take on a busy machine before the test fails, in seconds."""

Start = Callable[..., subprocess.Popen[str]]
"""Starts a shell with a script."""

STUBBORN = 'trap "" TERM HUP INT; echo $$; exec sleep 60'
"""Ignores every signal it can, and prints its pid."""


@pytest.fixture
def others() -> list[psutil.Process]:
    """This process's children before the test starts its own."""
    return psutil.Process().children()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("session", ["", "setsid "])
def test_a_grandchild_that_ignores_signals_is_killed(
    start: Start, others: list[psutil.Process], session: str
):
    parent = start(f"{session}sh -c '{STUBBORN}' & wait")
    grandchild = int(parent.stdout.readline())
    assert psutil.Process(grandchild).ppid() == parent.pid

    with adopting():
        end_orphans(others)

    assert not is_running(grandchild)
    assert not is_running(parent.pid)
    assert psutil.Process().children() == others


def test_earlier_processes_and_their_children_are_left_alone(
    start: Start, others: list[psutil.Process]
):
    before = start(STUBBORN)
    parent = start(f"sh -c '{STUBBORN}' & wait")
    there = [int(process.stdout.readline()) for process in (before, parent)]
    others = [*others, psutil.Process(before.pid), psutil.Process(parent.pid)]
    mine = int(start(STUBBORN).stdout.readline())

    end_orphans(others)

    assert [is_running(pid) for pid in [*there, parent.pid, mine]] == [True, True, True, False]
    os.kill(there[1], signal.SIGKILL)


def test_a_stopped_process_is_killed_too(start: Start, others: list[psutil.Process]):
    process = start(STUBBORN)
    pid = int(process.stdout.readline())
    os.kill(pid, signal.SIGSTOP)

    end_orphans(others)

    assert not is_running(pid)


def test_an_exited_process_is_reaped(start: Start, others: list[psutil.Process]):
    process = start("exit 0")
    process.stdout.read()

    end_orphans(others)

    assert not psutil.pid_exists(process.pid)


def test_a_process_whose_parent_died_is_killed(start: Start, others: list[psutil.Process]):
    with adopting():
        parent = start(f"sh -c '{STUBBORN}' & read go")
        orphan = int(parent.stdout.readline())
        parent.stdin.write("go\n")
        parent.stdin.flush()
        parent.wait(SECONDS)
        assert psutil.Process(orphan).ppid() == os.getpid()

        end_orphans(others)

    assert not is_running(orphan)


def test_without_orphans_nothing_is_waited_for(
    others: list[psutil.Process], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(psutil, "wait_procs", lambda *_, **__: pytest.fail("it waits"))

    end_orphans(others)
