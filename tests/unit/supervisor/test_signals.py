import signal
import subprocess
from collections.abc import Callable

import pytest

from rm_ray.errors import StoppedError
from rm_ray.supervisor.signals import Signals, say

SECONDS = 240
"""How long a process may take on a busy machine before the test fails, in seconds."""

Start = Callable[..., subprocess.Popen[str]]
"""Starts a shell with a script."""


def test_previous_signal_handlers_are_restored():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    with Signals():
        assert [signal.getsignal(number) for number in numbers] != before

    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_the_first_signal_asks_and_the_second_kills(start: Start, number: int, reason: str):
    with Signals() as signals:
        signals.process = start("read order; echo $order; trap '' TERM INT; read never")
        signal.raise_signal(number)
        assert signals.process.stdout.readline() == f"{reason}\n"
        assert signals.process.poll() is None
        signal.raise_signal(number)
        assert signals.process.wait(SECONDS) == -signal.SIGKILL


def test_a_signal_between_attempts_ends_the_wait():
    with Signals() as signals:
        signals.sleep(0, step=7)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedError) as caught:
            signals.sleep(10 * SECONDS, step=7)
    assert (caught.value.reason, caught.value.step) == ("terminated", 7)


def test_an_attempt_receives_its_task_before_any_signal(start: Start):
    with Signals() as signals:
        process = start("while read line; do echo got $line; done")
        signals.watch_over(process, "a task")
        assert process.stdout.readline() == "got a task\n"
        signal.raise_signal(signal.SIGTERM)
        assert process.stdout.readline() == "got terminated\n"


def test_an_earlier_signal_is_forwarded_after_the_task(start: Start):
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        process = start("while read line; do echo got $line; done")
        signals.watch_over(process, "a task")
        assert process.stdout.readline() == "got a task\n"
        assert process.stdout.readline() == "got interrupted\n"
        assert process.poll() is None
        signal.raise_signal(signal.SIGINT)
        assert process.wait(SECONDS) == -signal.SIGKILL


def test_writing_to_an_exited_attempt_is_not_an_error(start: Start):
    process = start("exit 0")
    process.wait(SECONDS)

    say(process, "terminated")

    process.communicate()
