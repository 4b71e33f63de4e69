import signal
import sys
from pathlib import Path

import pytest

from rm_ray.commands.exits import STOPS, ExitStatus, run_command
from rm_ray.errors import InputError, LostError, StoppedError, TrainingError
from rm_ray.supervisor.signals import INTERRUPTED, TERMINATED

ROOT = Path(__file__).resolve().parents[3]


def run(error: BaseException | None, *, on_interrupt: str | None = None) -> int:
    def act(arguments: object) -> int:
        assert arguments == ["--option"]
        if error is not None:
            raise error
        return ExitStatus.DONE

    return run_command(act, ["--option"], on_interrupt=on_interrupt)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (TrainingError("the loss is not finite"), 1, "error: the loss is not finite\n"),
        (LostError("Ray did not start"), 1, "error: Ray did not start\n"),
        (InputError("data.train is empty"), 2, "error: data.train is empty\n"),
        (PermissionError(13, "denied", "/a"), 2, "error: [Errno 13] denied: '/a'\n"),
        (KeyboardInterrupt(), 130, "no run was started\n"),
        (
            StoppedError("interrupted", 12, 10),
            130,
            "interrupted at step 12; its newest checkpoint is from step 10; "
            "rerun the same command to resume\n",
        ),
        (
            StoppedError("terminated", 12, None),
            143,
            "terminated at step 12; rerun the same command to resume\n",
        ),
    ],
)
def test_each_outcome_has_its_status_and_one_line(error, status, line, capsys):
    assert run(error, on_interrupt="no run was started") == status
    assert capsys.readouterr() == (line, "")


def test_an_interrupt_is_silent_without_a_message(capsys):
    assert run(KeyboardInterrupt()) == ExitStatus.INTERRUPTED
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), SystemExit(2)])
def test_any_other_error_propagates(error):
    with pytest.raises(type(error)):
        run(error)


def test_a_stop_has_the_shells_exit_status_for_its_signal():
    assert {INTERRUPTED: 128 + signal.SIGINT, TERMINATED: 128 + signal.SIGTERM} == STOPS


def test_ctrl_c_exits_with_130_and_no_traceback(start, tmp_path):
    script = f"exec {sys.executable} {ROOT}/jobs/status.py {tmp_path} --watch 0.1 2>&1"
    process = start(script)
    assert "there are no runs" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=240)
    assert process.returncode == ExitStatus.INTERRUPTED
    assert "Traceback" not in rest
