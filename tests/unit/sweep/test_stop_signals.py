import os
import signal

import pytest

from rm_ray.sweep.stop_signals import StopSignals


class Processes:
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.signals_on_join = 0

    def stop_all(self) -> None:
        self.asked.append("stop")

    def kill(self) -> None:
        self.asked.append("kill")

    def join(self) -> None:
        self.asked.append("join")
        for _ in range(self.signals_on_join):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_the_first_signal_ends_the_schedule_and_stops_the_trials(number: int, reason: str):
    processes, before = Processes(), signal.getsignal(number)
    with StopSignals(processes) as signals:  # type: ignore[arg-type]
        os.kill(os.getpid(), number)
        raise AssertionError("the schedule goes on")
    assert signals.reason == reason
    assert processes.asked[0] == "stop"
    assert processes.asked[-1] == "join"
    assert signal.getsignal(number) is before


def test_a_second_signal_kills_the_trials():
    processes = Processes()
    processes.signals_on_join = 2
    with StopSignals(processes) as signals:  # type: ignore[arg-type]
        pass
    assert processes.asked == ["join", "stop", "kill"]
    assert signals.reason == "terminated"


def test_an_error_stops_the_trials_and_goes_on():
    processes = Processes()
    with pytest.raises(ValueError, match="a bug"), StopSignals(processes):  # type: ignore[arg-type]
        raise ValueError("a bug")
    assert processes.asked == ["stop", "join"]


def test_the_schedule_s_end_waits_for_the_trials():
    processes = Processes()
    with StopSignals(processes) as signals:  # type: ignore[arg-type]
        pass
    assert (processes.asked, signals.reason) == (["join"], None)
