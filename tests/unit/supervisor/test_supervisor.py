import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.runs.attempts import ATTEMPTS, Attempt, read_attempts, write_attempts
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage
from rm_ray.supervisor import attempt_process, claims, supervisor
from rm_ray.supervisor.decide import DEATHS_WITHOUT_PROGRESS
from rm_ray.supervisor.supervisor import supervise

Program = Callable[[str], None]
"""Sets the program that attempts run."""


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(run=RunConfig(name="small", storage_path=str(tmp_path / "storage")))


@pytest.fixture
def run_folder(config: TrainConfig) -> Storage:
    return Storage.open(config.run.storage_path).folder(config.run.name)


@pytest.fixture
def attempts_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Replace attempts with a short program from the test, which reports but does not train."""

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


def test_attempts_are_repeated_until_the_run_is_finished(
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


def test_an_attempt_receives_its_task(config: TrainConfig, attempts_do: Program):
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


def test_a_new_command_continues_the_attempt_numbers_but_not_the_loss_count(
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

    # The first loss of this command: retried, and without a delay.
    result = supervise(config, Startup())

    num_earlier = DEATHS_WITHOUT_PROGRESS + 1
    assert result["number"] == num_earlier + 1
    assert [attempt["ending"] for attempt in result["earlier"]] == ["lost"] * num_earlier
    assert len(read_attempts(run_folder)) == num_earlier + 1


def make_checkpoint(run_folder: Storage, *, step: int, attempt: int) -> None:
    run_folder.write_text(f"{checkpoint_name(step, attempt)}/state.json", "{}")


@pytest.mark.parametrize("content", ["", "{", '[{"number": 1}]', '[{"of": "another version"}]'])
def test_a_damaged_list_of_attempts_does_not_end_the_run(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, content: str
):
    make_checkpoint(run_folder, step=40, attempt=6)
    run_folder.write_text(ATTEMPTS, content)
    attempts_do("tell(ending='finished', result={'number': task['number']})")

    assert supervise(config, Startup()) == {"number": 7}
    assert [attempt.number for attempt in read_attempts(run_folder)] == [7]


def test_a_finished_run_is_not_restarted(
    config: TrainConfig, run_folder: Storage, attempts_do: Program
):
    run_folder.write_json("result.json", {"steps": 40})
    attempts_do("die()")

    assert supervise(config, Startup()) == {"steps": 40}
    assert read_attempts(run_folder) == []


def test_of_two_simultaneous_commands_the_first_to_write_stops(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attempt_process, "WRITE_EVERY_S", 0.05)
    attempts_do("import time; time.sleep(60)")
    before = psutil.Process().children()
    other = Attempt(number=1, command="the other", began=1.0, updated=1.0)
    real = claims.write_attempts

    def write_and_let_the_other_write(run_folder: Storage, attempts: Sequence[Attempt]) -> None:
        real(run_folder, attempts)
        real(run_folder, [other])

    monkeypatch.setattr(claims, "write_attempts", write_and_let_the_other_write)

    with pytest.raises(InputError, match="another command is at work on the run in"):
        supervise(config, Startup())
    assert [attempt.command for attempt in read_attempts(run_folder)] == ["the other"]
    assert not [child for child in psutil.Process().children() if child not in before]


@pytest.mark.parametrize(
    ("ending", "error"),
    [("refused", InputError), ("failed", TrainingError)],
)
def test_errors_that_a_retry_cannot_fix_are_raised(
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
def test_a_signal_is_forwarded_and_the_answer_awaited(
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


def test_a_signal_during_startup_of_an_attempt_is_forwarded_to_it(
    config: TrainConfig, run_folder: Storage, attempts_do: Program, monkeypatch: pytest.MonkeyPatch
):
    def count_with_a_signal(*_: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 1

    monkeypatch.setattr(supervisor, "next_number", count_with_a_signal)
    attempts_do("""
        tell(ending="stopped", cause=sys.stdin.readline().strip(), step=task["number"])
    """)

    with pytest.raises(StoppedError) as caught:
        supervise(config, Startup())

    assert (caught.value.reason, caught.value.step) == ("terminated", 1)
    (attempt,) = read_attempts(run_folder)
    assert (attempt.ending, attempt.cause) == ("stopped", "terminated")


def test_a_second_signal_kills_an_attempt_that_does_not_answer(
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


def test_no_attempt_follows_one_that_dies_after_a_signal(
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


def test_terminal_signals_reach_only_the_supervisor(config: TrainConfig, attempts_do: Program):
    attempts_do("tell(ending='finished', result={'session': os.getsid(0), 'mine': os.getpid()})")

    result = supervise(config, Startup())

    assert result["session"] == result["mine"] != os.getsid(0)


def test_leftover_processes_are_killed_before_the_next_attempt(
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


def test_neither_the_supervisor_nor_the_run_folder_imports_torch_or_ray():
    home = Path(supervisor.__file__).parents[1]
    modules = [
        f"rm_ray.{package}.{path.stem}"
        for package in ("supervisor", "runs")
        for path in sorted((home / package).glob("*.py"))
        if path.stem != "__init__"
    ]
    script = (
        f"import sys; import {', '.join(modules)}; "
        "print(sorted({'ray', 'torch', 'transformers', 'mlflow'} & sys.modules.keys()))"
    )

    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=home.parent, capture_output=True, text=True, check=True
    )

    assert shown.stdout == "[]\n"
