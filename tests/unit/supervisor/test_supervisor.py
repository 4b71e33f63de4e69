import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config.train_config import RunConfig, TrainConfig
from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.runs.attempts import (
    ATTEMPTS,
    Attempt,
    Ending,
    checkpoint_name,
    read_attempts,
    write_attempts,
)
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage
from rm_ray.supervisor import supervisor
from rm_ray.supervisor.supervisor import (
    DEATHS_WITHOUT_PROGRESS,
    LONG_AGO_S,
    LONGEST_DELAY_S,
    OUTAGE_DELAY_S,
    WRITE_EVERY_S,
    _describe_exit,
    _next_number,
    _refuse_company,
    _told,
    supervise,
)

decide = partial(supervisor.decide, patience_s=0.0)

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


def lost(step: int, signature: str = "", *, first_step: int | None = None) -> Attempt:
    cause = signature or "rank 1 died"
    attempt = ended("lost", step=step, cause=cause, signature=signature)
    return replace(attempt, first_step=first_step)


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


@pytest.mark.parametrize("first_step", [None, 0, 5])
def test_between_losses_without_progress_it_waits_longer_each_time(first_step: int | None):
    again = [lost(7, first_step=first_step)]
    delays = [decide(again * count) for count in range(1, DEATHS_WITHOUT_PROGRESS)]

    assert delays == [0, 2, 4, 8, 16, 30, 30]
    assert max(delays) <= LONGEST_DELAY_S


def test_deaths_without_progress_end_the_training():
    with pytest.raises(TrainingError) as caught:
        decide([lost(7)] * DEATHS_WITHOUT_PROGRESS)

    assert str(caught.value) == (
        "8 attempts in a row were lost at step 7, the last one because rank 1 died. The "
        "checkpoints are kept; the same command tries again"
    )


def test_progress_begins_the_count_anew():
    before = [lost(7, first_step=5)] * (DEATHS_WITHOUT_PROGRESS - 1)
    further = lost(8, first_step=6)

    assert decide([*before, further]) == 0
    assert decide([*before, further, further]) == 2
    assert goes_on([*before, *[further] * (DEATHS_WITHOUT_PROGRESS - 1)])
    assert not goes_on([*before, *[further] * DEATHS_WITHOUT_PROGRESS])


@pytest.mark.parametrize("first_step", [None, 0, 4, 5])
def test_progress_is_to_begin_further_than_ever(first_step: int | None):
    before = [lost(7, first_step=5)] * (DEATHS_WITHOUT_PROGRESS - 1)

    # It lost the newest checkpoint, or did not get to train, or went on a few steps.
    assert not goes_on([*before, lost(9, first_step=first_step)])
    assert decide([lost(7, first_step=5), lost(9, first_step=first_step)]) == 2


def test_to_get_back_to_where_it_was_is_no_progress():
    attempts = [lost(7, first_step=first) for first in (5, None, 3, 5)]

    assert decide(attempts) == 8
    assert decide([*attempts, lost(7, first_step=6)]) == 0


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40))
def test_a_run_that_gets_further_each_time_goes_on_forever(gains: list[int]):
    attempts, step = [], 0
    for gain in gains:
        step += gain
        attempts.append(lost(step + 1, signature="an error", first_step=step))
        assert decide(attempts) == 0


def test_after_a_step_that_is_left_out_from_now_on_it_goes_on_at_once():
    skipping = [replace(lost(7), skips=step) for step in (7, 8)]

    assert decide([lost(7), lost(7), *skipping]) == 0
    assert decide(skipping * DEATHS_WITHOUT_PROGRESS) == 0


def test_the_same_error_twice_without_progress_is_no_accident():
    with pytest.raises(TrainingError) as caught:
        decide([lost(7, "ValueError: x"), lost(7, "ValueError: x")])

    assert str(caught.value) == (
        "the same error came twice at step 7, so it is no accident:\nValueError: x\n"
        "The checkpoints before it are kept"
    )


def test_the_same_error_at_the_same_step_is_no_accident_after_a_newer_checkpoint_either():
    assert not goes_on([lost(8, "ValueError: x"), lost(8, "ValueError: x", first_step=5)])
    assert goes_on([lost(8, "ValueError: x"), lost(8, "KeyError: y", first_step=5)])


def test_the_step_of_the_same_error_may_be_read_a_little_early_or_late():
    first, second, third = (lost(step, "KeyError: 3", first_step=980) for step in (985, 991, 988))

    assert decide([first]) == 0
    assert not goes_on([first, second])
    assert not goes_on([first, third])
    assert not goes_on([second, third])


def test_the_same_error_before_the_first_step_is_no_accident():
    assert not goes_on([lost(0, "KeyError: 3"), lost(0, "KeyError: 3")])
    assert not goes_on([lost(7, "KeyError: 3", first_step=5), lost(0, "KeyError: 3")])


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
        [lost(6, "ValueError: x", first_step=5), lost(7, "ValueError: x", first_step=6)],
        [lost(6, "ValueError: x"), lost(7, "ValueError: x", first_step=1)],
        [lost(7, "ValueError: x"), lost(7, "ValueError: y")],
        [lost(7, "ValueError: x"), lost(7)],
        [lost(7), lost(7)],
        [
            lost(7, "ValueError: x", first_step=6),
            lost(8, first_step=7),
            lost(9, "ValueError: x", first_step=7),
        ],
        [lost(7, "ValueError: x"), ended("stopped", step=9, cause="resized"), lost(9)],
    ],
)
def test_another_error_or_the_same_after_progress_may_be_an_accident(attempts: list[Attempt]):
    assert goes_on(attempts)


def outage(*, began: float, updated: float, first_step: int | None = None) -> Attempt:
    return Attempt(
        number=1, began=began, updated=updated, ending="lost", cause="OSError(5)", step=7,
        first_step=first_step, is_outage=True,
    )  # fmt: skip


def test_what_does_not_answer_is_waited_for_by_the_clock_and_not_by_number():
    trained = outage(began=0, updated=100, first_step=3)
    after = [outage(began=100 + 10 * i, updated=110 + 10 * i) for i in range(60)]

    for i in range(1, 60):
        waited = after[i - 1].updated - trained.updated
        if waited < 500:
            assert supervisor.decide([trained, *after[:i]], patience_s=500) == OUTAGE_DELAY_S
    with pytest.raises(TrainingError, match="61 attempts in a row were lost"):
        supervisor.decide([trained, *after], patience_s=500)


def test_what_was_trained_on_and_is_refused_may_be_an_outage():
    trained, now = lost(7, first_step=0), ended("refused", cause="no such file")

    with pytest.raises(InputError):
        supervisor.decide([now], patience_s=500)
    assert supervisor.decide([trained, now], patience_s=500) == OUTAGE_DELAY_S
    with pytest.raises(InputError, match="no such file"):
        supervisor.decide([trained, replace(now, updated=501)], patience_s=500)


def test_a_loss_after_a_stop_is_the_first():
    stopped = ended("stopped", step=7, cause="preempted")

    assert decide([lost(5), stopped, lost(8)]) == 0


@pytest.mark.parametrize(
    ("status", "told"), [(-9, "SIGKILL"), (-15, "SIGTERM"), (-11, "SIGSEGV"), (3, "exit status 3")]
)
def test_how_a_process_ended_is_told_by_name(status: int, told: str):
    assert _describe_exit(status) == told


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
    monkeypatch.setattr(supervisor, "QUIET_FOR_S", 0.4)
    lives = """for i in 1 2 3 4 5 6; do sleep 0.1; echo '{"lives": true}' >&9; done"""
    process, reading = telling(
        start, f"""echo '{last}' >&9; {lives}; echo '{{"cause": "x"}}' >&9"""
    )

    told = [changed for changed in _told(process, reading) if changed not in ({}, {"lives": True})]
    assert told == [json.loads(last), {"cause": "x"}]
    assert process.returncode == 0


@pytest.mark.parametrize(
    "first", ['{"step": 1}', '{"num_workers": 2}', '{"step": 3, "ending": "finished"}']
)
def test_an_attempt_that_does_not_even_live_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch, first: str
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.05)
    monkeypatch.setattr(supervisor, "QUIET_FOR_S", 0.2)
    process, reading = telling(start, f"""echo '{first}' >&9; trap '' TERM; read never""")

    assert list(filter(None, _told(process, reading))) == [json.loads(first)]
    assert process.returncode == -signal.SIGKILL


def test_an_attempt_that_lives_but_trains_no_more_is_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.05)
    monkeypatch.setattr(supervisor, "QUIET_FOR_S", 0.3)
    lives = """while sleep 0.05; do echo '{"lives": true}' >&9; done"""
    process, reading = telling(start, f"""echo '{{"step": 1}}' >&9; {lives}""")

    told = list(_told(process, reading))
    assert [changed for changed in told if changed not in ({}, {"lives": True})] == [{"step": 1}]
    assert process.returncode == -signal.SIGKILL


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


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(run=RunConfig(name="small", storage_path=str(tmp_path / "storage")))


@pytest.fixture
def run_folder(config: TrainConfig) -> Storage:
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
    config: TrainConfig, run_folder: Storage, attempts_do: Program
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

    attempts = read_attempts(run_folder)
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

    assert result["arguments"] == ["-m", "rm_ray.driver.attempt"]
    assert result["task"] == {
        "config": config.to_json(),
        "number": 1,
        "began": 1000.0,
        "earlier": [],
    }


def test_another_command_counts_attempts_on_but_not_their_losses(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
):
    earlier = [
        Attempt(number=n, began=0, updated=1, ending="lost", cause="rank 1 died", step=7)
        for n in range(1, DEATHS_WITHOUT_PROGRESS)
    ]
    killed = Attempt(number=DEATHS_WITHOUT_PROGRESS, began=1, updated=9, step=7)
    write_attempts(run_folder, [*earlier, killed])
    attempts_do(f"""
        tell(step=7)
        if task["number"] == {DEATHS_WITHOUT_PROGRESS + 1}:
            die()
        tell(ending="finished", result={{"number": task["number"], "earlier": task["earlier"]}})
    """)

    # The first loss of this command, so that it goes on; and it does so without a delay.
    result = supervise(config, Startup())

    num_earlier = DEATHS_WITHOUT_PROGRESS + 1
    assert result["number"] == num_earlier + 1
    assert [attempt["ending"] for attempt in result["earlier"]] == ["lost"] * num_earlier
    assert len(read_attempts(run_folder)) == num_earlier + 1


def make_checkpoint(run_folder: Storage, *, step: int, attempt: int) -> None:
    run_folder.write_text(f"{checkpoint_name(step, attempt)}/state.json", "{}")


def test_the_first_attempt_has_number_1(run_folder: Storage):
    assert _next_number(run_folder, []) == 1


def test_a_number_follows_the_highest_of_the_attempts(run_folder: Storage):
    attempts = [replace(lost(7), number=number) for number in (3, 12, 5)]

    assert _next_number(run_folder, attempts) == 13


def test_a_number_follows_that_of_checkpoints_whose_attempts_are_unknown(run_folder: Storage):
    for step, attempt in [(40, 2), (30, 11), (90, 9)]:
        make_checkpoint(run_folder, step=step, attempt=attempt)

    assert _next_number(run_folder, []) == 12
    assert _next_number(run_folder, [replace(lost(7), number=4)]) == 12
    assert _next_number(run_folder, [replace(lost(7), number=20)]) == 21


@pytest.mark.parametrize("content", ["", "{", '[{"number": 1}]', '[{"of": "another version"}]'])
def test_a_damaged_list_of_attempts_does_not_end_the_run(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, content: str
):
    make_checkpoint(run_folder, step=40, attempt=6)
    run_folder.write_text(ATTEMPTS, content)
    attempts_do("tell(ending='finished', result={'number': task['number']})")

    assert supervise(config, Startup()) == {"number": 7}
    assert [attempt.number for attempt in read_attempts(run_folder)] == [7]


def test_a_finished_run_is_not_begun_again(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
):
    run_folder.write_json("result.json", {"steps": 40})
    attempts_do("die()")

    assert supervise(config, Startup()) == {"steps": 40}
    assert read_attempts(run_folder) == []


def running(*, heard_of: float) -> Attempt:
    return Attempt(number=1, began=heard_of - 60, updated=heard_of)


@pytest.mark.parametrize("ago_s", [2 * LONG_AGO_S, -2 * LONG_AGO_S])
def test_a_command_that_was_heard_of_long_ago_is_not_waited_for(run_folder: Storage, ago_s: float):
    write_attempts(run_folder, [running(heard_of=time.time() - ago_s)])

    started = time.monotonic()
    _refuse_company(run_folder)

    assert time.monotonic() - started < 3 * WRITE_EVERY_S


def test_a_command_that_ended_a_moment_ago_is_not_waited_for(run_folder: Storage):
    _refuse_company(run_folder)
    write_attempts(run_folder, [replace(running(heard_of=time.time()), ending="stopped")])

    started = time.monotonic()
    _refuse_company(run_folder)

    assert time.monotonic() - started < 3 * WRITE_EVERY_S


def test_a_command_that_was_killed_a_moment_ago_is_followed(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    write_attempts(run_folder, [running(heard_of=time.time())])

    _refuse_company(run_folder)

    assert waited == [3 * WRITE_EVERY_S]


def test_a_second_command_on_a_run_that_is_under_way_is_refused(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    now = time.time()
    write_attempts(run_folder, [running(heard_of=now - 1)])

    def let_the_other_write(_: float) -> None:
        write_attempts(run_folder, [running(heard_of=now)])

    monkeypatch.setattr(time, "sleep", let_the_other_write)

    with pytest.raises(InputError, match="another command is at work on the run in"):
        _refuse_company(run_folder)


def test_a_second_command_may_follow_when_the_first_ends_while_it_looks(
    run_folder: Storage, monkeypatch: pytest.MonkeyPatch
):
    before = running(heard_of=time.time())
    write_attempts(run_folder, [before])

    def let_the_other_end(_: float) -> None:
        write_attempts(run_folder, [replace(before, ending="stopped", updated=time.time())])

    monkeypatch.setattr(time, "sleep", let_the_other_end)

    _refuse_company(run_folder)


def test_of_two_commands_begun_at_once_the_first_to_write_ends(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(supervisor, "WRITE_EVERY_S", 0.05)
    attempts_do("import time; time.sleep(60)")
    before = psutil.Process().children()
    other = Attempt(number=1, command="the other", began=1.0, updated=1.0)
    real = supervisor.write_attempts

    def write_and_let_the_other_write(run_folder: Storage, attempts: Sequence[Attempt]) -> None:
        real(run_folder, attempts)
        real(run_folder, [other])

    monkeypatch.setattr(supervisor, "write_attempts", write_and_let_the_other_write)

    with pytest.raises(InputError, match="another command is at work on the run in"):
        supervise(config, Startup())
    assert [attempt.command for attempt in read_attempts(run_folder)] == ["the other"]
    assert not [child for child in psutil.Process().children() if child not in before]


@pytest.mark.parametrize(
    ("ending", "error"),
    [("refused", InputError), ("failed", TrainingError)],
)
def test_what_no_attempt_can_mend_is_raised(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, ending: str, error: type
):
    attempts_do(f"tell(ending={ending!r}, cause='for this reason')")

    with pytest.raises(error, match="for this reason"):
        supervise(config, Startup())
    assert [attempt.ending for attempt in read_attempts(run_folder)] == [ending]


def test_the_same_error_in_two_attempts_is_raised(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
):
    attempts_do("tell(step=3, ending='lost', cause='a traceback', signature='KeyError: 3')")

    with pytest.raises(TrainingError, match="came twice at step 3"):
        supervise(config, Startup())
    assert len(read_attempts(run_folder)) == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_passed_on_and_the_answer_waited_for(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, name: str
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
    (attempt,) = read_attempts(run_folder)
    assert (attempt.ending, attempt.cause, attempt.step) == ("stopped", reason, 6)


def test_a_signal_while_an_attempt_is_being_started_is_passed_on_to_it(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, monkeypatch: pytest.MonkeyPatch
):
    def count_with_a_signal(*_: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 1

    monkeypatch.setattr(supervisor, "_next_number", count_with_a_signal)
    attempts_do("""
        tell(ending="stopped", cause=sys.stdin.readline().strip(), step=task["number"])
    """)

    with pytest.raises(StoppedError) as caught:
        supervise(config, Startup())

    assert (caught.value.reason, caught.value.step) == ("terminated", 1)
    (attempt,) = read_attempts(run_folder)
    assert (attempt.ending, attempt.cause) == ("stopped", "terminated")


def test_a_second_signal_ends_an_attempt_that_does_not_answer(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
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

    assert (caught.value.reason, caught.value.step) == ("terminated", 5)
    (attempt,) = read_attempts(run_folder)
    assert (attempt.ending, attempt.cause) == ("lost", "its driver ended with SIGKILL")


def test_a_signal_in_an_attempt_that_then_dies_starts_no_other(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
):
    attempts_do("""
        os.kill(os.getppid(), signal.SIGTERM)
        sys.stdin.readline()
        die()
    """)

    with pytest.raises(StoppedError) as caught:
        supervise(config, Startup())

    assert caught.value.reason == "terminated"
    assert len(read_attempts(run_folder)) == 1


def test_signals_of_the_terminal_reach_the_supervisor_alone(
    config: TrainConfig, attempts_do: Program
):
    attempts_do("tell(ending='finished', result={'session': os.getsid(0), 'mine': os.getpid()})")

    result = supervise(config, Startup())

    assert result["session"] == result["mine"] != os.getsid(0)


def test_what_an_attempt_leaves_running_is_gone_before_the_next(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
):
    attempts_do("""
        def is_running(pid):
            try:
                return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
            except FileNotFoundError:
                return False
        if task["number"] == 2:
            pid = int(task["earlier"][0]["signature"])
            tell(ending="finished", result={"pid": pid, "runs": is_running(pid)})
        else:
            command = ["/bin/sh", "-c", "trap '' TERM HUP INT; echo $$; exec sleep 60"]
            left = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert is_running(int(left.stdout.readline()))
            tell(ending="lost", cause="rank 1 died", signature=str(left.pid))
            die()
    """)

    result = supervise(config, Startup())

    assert result["runs"] is False
    assert not psutil.pid_exists(result["pid"])
