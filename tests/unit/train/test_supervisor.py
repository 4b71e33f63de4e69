import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config import RunConfig, TrainConfig
from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.storage import Storage
from rm_ray.train import supervisor
from rm_ray.train.attempts import Attempt, Ending, read_attempts, write_attempts
from rm_ray.train.startup import Startup
from rm_ray.train.supervisor import (
    _MARK,
    DEATHS_WITHOUT_PROGRESS,
    LONG_AGO_S,
    LONGEST_DELAY_S,
    WRITE_EVERY_S,
    _adopting,
    _describe_exit,
    _end_orphans,
    _refuse_company,
    _Signals,
    _told,
    decide,
    supervise,
)

SECONDS = 30
"""How long a process may take on a busy machine before it is held to be stuck."""

Start = Callable[..., subprocess.Popen[str]]
"""Starts a shell with a script."""

Program = Callable[[str], None]
"""Says what attempts do."""


def ended(
    ending: Ending, *, step: int = 10, cause: str = "rank 1 died", signature: str = ""
) -> Attempt:
    return Attempt(
        number=1, began=0, updated=1, ending=ending, step=step, cause=cause, signature=signature
    )


def lost(step: int, signature: str = "") -> Attempt:
    return ended("lost", step=step, cause=signature or "rank 1 died", signature=signature)


def goes_on(attempts: Sequence[Attempt]) -> bool:
    try:
        decide(attempts)
    except TrainingError:
        return False
    return True


def test_what_was_refused_is_the_users_to_mend():
    with pytest.raises(InputError) as caught:
        decide([lost(1), ended("refused", cause="data.train is empty")])
    assert str(caught.value) == "data.train is empty"


def test_what_failed_for_good_ends_the_training():
    with pytest.raises(TrainingError) as caught:
        decide([ended("failed", cause="the loss of step 3 is not a finite number")])
    assert str(caught.value) == "the loss of step 3 is not a finite number"


@pytest.mark.parametrize("reason", ["interrupted", "terminated"])
def test_a_signal_that_was_obeyed_ends_the_command(reason: str):
    with pytest.raises(StoppedError) as caught:
        decide([ended("stopped", cause=reason, step=12)])
    assert (caught.value.reason, caught.value.step) == (reason, 12)


@pytest.mark.parametrize("reason", ["resized", "preempted"])
def test_after_another_stop_it_goes_on_at_once(reason: str):
    assert decide([ended("stopped", cause=reason)]) == 0
    assert decide([ended("stopped", cause=reason)] * (DEATHS_WITHOUT_PROGRESS + 1)) == 0


def test_after_the_first_loss_it_goes_on_at_once():
    assert decide([lost(0)]) == 0
    assert decide([lost(7)]) == 0


def test_between_losses_at_the_same_step_it_waits_longer_each_time():
    delays = [decide([lost(7)] * count) for count in range(1, DEATHS_WITHOUT_PROGRESS)]

    assert delays == [0, 2, 4, 8]
    assert max(delays) <= LONGEST_DELAY_S


def test_deaths_without_progress_end_the_training():
    with pytest.raises(TrainingError) as caught:
        decide([lost(7)] * DEATHS_WITHOUT_PROGRESS)

    assert str(caught.value) == (
        "5 attempts in a row were lost at step 7, the last one because rank 1 died. The "
        "checkpoints are kept; the same command tries again"
    )


def test_progress_begins_the_count_anew():
    before = [lost(7)] * (DEATHS_WITHOUT_PROGRESS - 1)

    assert decide([*before, lost(8)]) == 0
    assert decide([*before, lost(8), lost(8)]) == 2
    assert not goes_on([*before, *[lost(8)] * DEATHS_WITHOUT_PROGRESS])


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40))
def test_a_run_that_gets_further_each_time_goes_on_forever(gains: list[int]):
    attempts, step = [], 0
    for gain in gains:
        step += gain
        attempts.append(lost(step, signature="an error"))
        assert decide(attempts) == 0


def test_after_a_step_that_is_left_out_from_now_on_it_goes_on_at_once():
    skipping = [replace(lost(7), skips=step) for step in (7, 8)]

    assert decide([lost(7), lost(7), *skipping]) == 0
    assert decide(skipping * DEATHS_WITHOUT_PROGRESS) == 0


def test_the_same_error_twice_at_the_same_step_is_no_accident():
    with pytest.raises(TrainingError) as caught:
        decide([lost(7, "ValueError: x"), lost(7, "ValueError: x")])

    assert str(caught.value) == (
        "the same error came twice at step 7, so it is no accident:\nValueError: x\n"
        "The checkpoints before it are kept"
    )


def test_the_whole_cause_of_an_error_is_told():
    cause = "rank 1 failed: ValueError: x\nTraceback\n  File a\nValueError: x\n"
    twice = [ended("lost", step=7, cause=cause, signature="ValueError: x")] * 2

    with pytest.raises(TrainingError) as caught:
        decide(twice)

    assert cause in str(caught.value)


def test_a_death_between_two_equal_errors_does_not_hide_them():
    assert not goes_on([lost(7, "ValueError: x"), lost(7), lost(7, "ValueError: x")])


@pytest.mark.parametrize(
    "attempts",
    [
        [lost(6, "ValueError: x"), lost(7, "ValueError: x")],
        [lost(7, "ValueError: x"), lost(7, "ValueError: y")],
        [lost(7, "ValueError: x"), lost(7)],
        [lost(7), lost(7)],
        [lost(7, "ValueError: x"), lost(8), lost(9, "ValueError: x")],
        [lost(7, "ValueError: x"), ended("stopped", step=9, cause="resized"), lost(9)],
    ],
)
def test_another_error_or_the_same_at_another_step_may_be_an_accident(attempts: list[Attempt]):
    assert goes_on(attempts)


def test_a_loss_after_a_stop_is_the_first():
    stopped = ended("stopped", step=7, cause="preempted")

    assert decide([lost(5), stopped, lost(8)]) == 0


@pytest.mark.parametrize(
    ("status", "told"), [(-9, "SIGKILL"), (-15, "SIGTERM"), (-11, "SIGSEGV"), (3, "exit status 3")]
)
def test_how_a_process_ended_is_told_by_name(status: int, told: str):
    assert _describe_exit(status) == told


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, and ends those that a test leaves running."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(["/bin/bash", "-c", script], **pipes | options)
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def telling(start: Start, script: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that tells by its descriptor 9; return it, and where to read."""
    reading, writing = os.pipe()
    process = start(f"exec 9>&{writing} {writing}>&-; {script}", pass_fds=[writing])
    os.close(writing)
    return process, reading


def test_what_an_attempt_tells_is_told_until_it_ends(start: Start):
    script = """echo '{"step": 1}' >&9; echo '{"step": 2}' >&9; echo '{"ending": "lost"}' >&9"""
    process, reading = telling(start, script)

    assert list(_told(process, reading)) == [{"step": 1}, {"step": 2}, {"ending": "lost"}]
    assert process.returncode == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)


def test_a_line_that_was_cut_off_by_a_kill_is_not_told(start: Start):
    process, reading = telling(start, """printf '{"step": 1}\n{"step"' >&9; kill -9 $$""")

    assert list(_told(process, reading)) == [{"step": 1}]
    assert process.returncode == -signal.SIGKILL


def test_a_line_may_come_in_parts(start: Start):
    script = """printf '{"st' >&9; read go; printf 'ep": 1}\n{"step": 2}\n' >&9; read end"""
    process, reading = telling(start, script)
    process.stdin.write("go\n")
    process.stdin.flush()
    told = _told(process, reading)

    assert [next(told), next(told)] == [{"step": 1}, {"step": 2}]
    process.stdin.write("end\n")
    process.stdin.flush()
    assert list(told) == []


def test_a_line_may_be_longer_than_what_is_read_at_once(start: Start, tmp_path: Path):
    result = {"ending": "finished", "result": {"history": "x" * 300_000}}
    (tmp_path / "line").write_text(json.dumps(result) + "\n")
    process, reading = telling(start, f"cat {tmp_path / 'line'} >&9")

    assert list(_told(process, reading)) == [result]


def test_an_attempt_that_trains_and_falls_silent_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.05)
    monkeypatch.setattr(supervisor, "QUIET_FOR_S", 0.2)
    process, reading = telling(start, """echo '{"step": 1}' >&9; trap '' TERM; read never""")

    assert list(filter(None, _told(process, reading))) == [{"step": 1}]
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("last", ['{"num_workers": 2}', '{"step": 3, "ending": "finished"}'])
def test_an_attempt_that_does_not_train_may_be_silent(
    start: Start, monkeypatch: pytest.MonkeyPatch, last: str
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.02)
    monkeypatch.setattr(supervisor, "QUIET_FOR_S", 0.02)
    script = f"""echo '{last}' >&9; sleep 0.5; echo '{{"cause": "spoke"}}' >&9"""
    process, reading = telling(start, script)

    assert list(filter(None, _told(process, reading))) == [json.loads(last), {"cause": "spoke"}]
    assert process.returncode == 0


def test_an_attempt_that_says_nothing_is_still_heard_of(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.02)
    process, reading = telling(start, "read go")
    told = _told(process, reading)

    assert [next(told) for _ in range(3)] == [{}, {}, {}]
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    assert list(filter(None, told)) == []


STUBBORN = 'trap "" TERM HUP INT; echo $$; exec sleep 60'
"""Ignores what it can, and says who it is."""


def marked(mark: str) -> dict[str, str]:
    return os.environ | {_MARK: mark}


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_marked_grandchild_that_ignores_signals_is_ended(start: Start):
    parent = start(f"sh -c '{STUBBORN}' & wait", env=marked("a"))
    grandchild = int(parent.stdout.readline())
    assert psutil.Process(grandchild).ppid() == parent.pid

    with _adopting():
        _end_orphans("a", patience_s=0.05)

    assert not is_running(grandchild)
    assert not is_running(parent.pid)


def test_processes_without_the_mark_are_left_alone(start: Start):
    others = [start(STUBBORN), start(STUBBORN, env=marked("another"))]
    pids = [int(process.stdout.readline()) for process in others]
    mine = int(start(STUBBORN, env=marked("mine")).stdout.readline())

    _end_orphans("mine", patience_s=0.05)

    assert [is_running(pid) for pid in [*pids, mine]] == [True, True, False]


def test_a_process_that_is_stopped_is_ended_too(start: Start):
    process = start(STUBBORN, env=marked("a"))
    pid = int(process.stdout.readline())
    os.kill(pid, signal.SIGSTOP)

    _end_orphans("a", patience_s=0.05)

    assert not is_running(pid)


def test_a_process_that_ends_by_itself_in_time_is_let(start: Start, tmp_path: Path):
    done = tmp_path / "done"
    start(f"sleep 0.3; echo by itself > {done}", env=marked("a"))

    _end_orphans("a", patience_s=SECONDS)

    assert done.read_text() == "by itself\n"


def test_a_process_whose_parent_died_is_found_and_ended(start: Start):
    with _adopting():
        parent = start(f"sh -c '{STUBBORN}' & read go", env=marked("a"))
        orphan = int(parent.stdout.readline())
        parent.stdin.write("go\n")
        parent.stdin.flush()
        parent.wait(SECONDS)
        assert psutil.Process(orphan).ppid() == os.getpid()

        _end_orphans("a", patience_s=0.05)

    assert not is_running(orphan)


def test_where_nothing_is_left_there_is_nothing_to_wait_for():
    _end_orphans("nothing has this mark", patience_s=10 * SECONDS)


def test_handlers_of_signals_are_as_they_were_afterwards():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    with _Signals():
        assert [signal.getsignal(number) for number in numbers] != before

    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_the_first_signal_asks_and_the_second_ends(start: Start, number: int, reason: str):
    with _Signals() as signals:
        signals.process = start("read order; echo $order; trap '' TERM INT; read never")
        signal.raise_signal(number)
        assert signals.process.stdout.readline() == f"{reason}\n"
        assert signals.process.poll() is None
        signal.raise_signal(number)
        assert signals.process.wait(SECONDS) == -signal.SIGKILL


def test_a_signal_between_attempts_ends_the_wait():
    with _Signals() as signals:
        signals.sleep(0)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedError) as caught:
            signals.sleep(10 * SECONDS)
    assert caught.value.reason == "terminated"


def test_an_attempt_that_is_gone_can_be_spoken_to(start: Start):
    with _Signals() as signals:
        signals.process = start("exit 0")
        signals.process.wait(SECONDS)
        signals.say("terminated")
        signals.process.communicate()


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(run=RunConfig(name="small", storage_path=str(tmp_path / "storage")))


@pytest.fixture
def run(config: TrainConfig) -> Storage:
    return Storage.open(config.run.storage_path).folder(config.run.name)


@pytest.fixture
def attempts_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Has a short program of a test's own stand for an attempt: it tells, and trains nothing."""

    def program(body: str) -> None:
        path = tmp_path / "attempt"
        path.write_text(
            f"#!{sys.executable} -S\n"
            "import json, os, signal, subprocess, sys\n"
            "task, supervisor = json.loads(sys.stdin.readline()), int(sys.argv[3])\n"
            "def tell(**changed):\n"
            "    os.write(supervisor, json.dumps(changed).encode() + b'\\n')\n"
            "def die():\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n" + textwrap.dedent(body)
        )
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return program


def test_a_run_goes_on_until_it_is_finished(
    config: TrainConfig, run: Storage, attempts_do: Program
):
    attempts_do("""
        number = task["number"]
        tell(num_workers=2)
        tell(step=number * 10, first_step=number * 10 - 10, spent={"steps": float(number)})
        if number == 1:
            die()
        if number == 2:
            tell(ending="lost", cause="rank 1 died", signature="")
        if number == 3:
            tell(ending="stopped", cause="preempted", step=35)
        if number == 4:
            tell(ending="finished", cause="", result={"steps": 40, "attempts": task["earlier"]})
    """)

    result = supervise(config, Startup(began=1000.0))

    attempts = read_attempts(run)
    assert [(a.number, a.ending, a.cause, a.first_step, a.step) for a in attempts] == [
        (1, "lost", "its driver ended with SIGKILL", 0, 10),
        (2, "lost", "rank 1 died", 10, 20),
        (3, "stopped", "preempted", 20, 35),
        (4, "finished", "", 30, 40),
    ]
    assert [attempt.spent["steps"] for attempt in attempts] == [1, 2, 3, 4]
    assert {attempt.num_workers for attempt in attempts} == {2}
    assert result["steps"] == 40
    assert result["attempts"] == [asdict(attempt) for attempt in attempts[:3]]
    assert attempts[0].began == 1000.0
    assert attempts[0].updated <= attempts[1].began


def test_an_attempt_is_told_what_to_do(config: TrainConfig, attempts_do: Program):
    attempts_do("""
        tell(ending="finished", result={"task": task, "arguments": sys.argv[1:3]})
    """)

    result = supervise(config, Startup(began=1000.0))

    assert result["arguments"] == ["-m", "rm_ray.train.attempt"]
    assert result["task"] == {
        "config": config.to_json(),
        "number": 1,
        "began": 1000.0,
        "earlier": [],
    }


def test_another_command_counts_attempts_on_but_not_their_losses(
    config: TrainConfig, run: Storage, attempts_do: Program
):
    earlier = [
        Attempt(number=n, began=0, updated=1, ending="lost", cause="rank 1 died", step=7)
        for n in range(1, DEATHS_WITHOUT_PROGRESS)
    ]
    killed = Attempt(number=DEATHS_WITHOUT_PROGRESS, began=1, updated=9, step=7)
    write_attempts(run, [*earlier, killed])
    attempts_do("""
        tell(step=7)
        if task["number"] == 6:
            die()
        tell(ending="finished", result={"number": task["number"], "earlier": task["earlier"]})
    """)

    # The first loss of this command, so that it goes on; and it does so without a delay.
    result = supervise(config, Startup())

    assert result["number"] == 7
    assert [attempt["ending"] for attempt in result["earlier"]] == ["lost"] * 6
    assert len(read_attempts(run)) == 7


def test_a_finished_run_is_not_begun_again(config: TrainConfig, run: Storage, attempts_do: Program):
    run.write_json("result.json", {"steps": 40})
    attempts_do("die()")

    assert supervise(config, Startup()) == {"steps": 40}
    assert read_attempts(run) == []


def running(*, heard_of: float) -> Attempt:
    return Attempt(number=1, began=heard_of - 60, updated=heard_of)


@pytest.mark.parametrize("ago_s", [2 * LONG_AGO_S, -2 * LONG_AGO_S])
def test_a_command_that_was_heard_of_long_ago_is_not_waited_for(run: Storage, ago_s: float):
    write_attempts(run, [running(heard_of=time.time() - ago_s)])

    started = time.monotonic()
    _refuse_company(run)

    assert time.monotonic() - started < 3 * WRITE_EVERY_S


def test_a_command_that_ended_a_moment_ago_is_not_waited_for(run: Storage):
    _refuse_company(run)
    write_attempts(run, [replace(running(heard_of=time.time()), ending="stopped")])

    started = time.monotonic()
    _refuse_company(run)

    assert time.monotonic() - started < 3 * WRITE_EVERY_S


def test_a_command_that_was_killed_a_moment_ago_is_followed(
    run: Storage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.05)
    write_attempts(run, [running(heard_of=time.time())])

    _refuse_company(run)


def test_a_second_command_on_a_run_that_is_under_way_is_refused(
    run: Storage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.05)
    began, has_ended = time.time(), threading.Event()
    write_attempts(run, [running(heard_of=began)])

    def write_on() -> None:
        for count in itertools.count(1):
            if has_ended.wait(0.01):
                return
            write_attempts(run, [running(heard_of=began + count)])

    other = threading.Thread(target=write_on)
    other.start()
    try:
        with pytest.raises(InputError, match="another command is at work on the run in"):
            _refuse_company(run)
    finally:
        has_ended.set()
        other.join()


@pytest.mark.parametrize(
    ("ending", "error"),
    [("refused", InputError), ("failed", TrainingError)],
)
def test_what_no_attempt_can_mend_is_raised(
    config: TrainConfig, run: Storage, attempts_do: Program, ending: str, error: type
):
    attempts_do(f"tell(ending={ending!r}, cause='for this reason')")

    with pytest.raises(error, match="for this reason"):
        supervise(config, Startup())
    assert [attempt.ending for attempt in read_attempts(run)] == [ending]


def test_the_same_error_in_two_attempts_is_raised(
    config: TrainConfig, run: Storage, attempts_do: Program
):
    attempts_do("tell(step=3, ending='lost', cause='a traceback', signature='KeyError: 3')")

    with pytest.raises(TrainingError, match="came twice at step 3"):
        supervise(config, Startup())
    assert len(read_attempts(run)) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_passed_on_and_the_answer_waited_for(
    config: TrainConfig, run: Storage, attempts_do: Program, name: str
):
    attempts_do(f"""
        tell(step=5)
        os.kill(os.getppid(), signal.{name})
        tell(step=6, ending="stopped", cause=sys.stdin.readline().strip())
    """)

    with pytest.raises(StoppedError) as caught:
        supervise(config, Startup())

    reason = {"SIGTERM": "terminated", "SIGINT": "interrupted"}[name]
    assert (caught.value.reason, caught.value.step) == (reason, 6)
    (attempt,) = read_attempts(run)
    assert (attempt.ending, attempt.cause, attempt.step) == ("stopped", reason, 6)


def test_a_second_signal_ends_an_attempt_that_does_not_answer(
    config: TrainConfig, run: Storage, attempts_do: Program
):
    attempts_do("""
        tell(step=5)
        os.kill(os.getppid(), signal.SIGTERM)
        sys.stdin.readline()
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    """)

    with pytest.raises(StoppedError) as caught:
        supervise(config, Startup())

    assert caught.value.reason == "terminated"
    (attempt,) = read_attempts(run)
    assert (attempt.ending, attempt.cause) == ("lost", "its driver ended with SIGKILL")


def test_a_signal_in_an_attempt_that_then_dies_starts_no_other(
    config: TrainConfig, run: Storage, attempts_do: Program
):
    attempts_do("""
        os.kill(os.getppid(), signal.SIGTERM)
        sys.stdin.readline()
        die()
    """)

    with pytest.raises(StoppedError) as caught:
        supervise(config, Startup())

    assert caught.value.reason == "terminated"
    assert len(read_attempts(run)) == 1


def test_signals_of_the_terminal_reach_the_supervisor_alone(
    config: TrainConfig, attempts_do: Program
):
    attempts_do("tell(ending='finished', result={'session': os.getsid(0), 'mine': os.getpid()})")

    result = supervise(config, Startup())

    assert result["session"] == result["mine"] != os.getsid(0)


def test_what_an_attempt_leaves_running_is_gone_before_the_next(
    config: TrainConfig, run: Storage, attempts_do: Program
):
    attempts_do(f"""
        def is_running(pid):
            try:
                return open(f"/proc/{{pid}}/stat").read().split()[2] != "Z"
            except FileNotFoundError:
                return False
        if task["number"] == 2:
            pid = int(task["earlier"][0]["signature"])
            tell(ending="finished", result={{"pid": pid, "runs": is_running(pid)}})
        else:
            command = ["/bin/sh", "-c", {STUBBORN!r}]
            left = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert is_running(int(left.stdout.readline()))
            tell(ending="lost", cause="rank 1 died", signature=str(left.pid))
            die()
    """)

    result = supervise(config, Startup())

    assert result["runs"] is False
    assert not is_running(result["pid"])
