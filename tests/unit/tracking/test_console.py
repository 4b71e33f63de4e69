import io
import sys

import pytest

from rm_ray.logs import log_to_stdout
from rm_ray.tracking.console import CLEAR, Console


class Screen(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Screen:
    """A stream that also gets the log lines; a terminal by default."""
    screen = Screen(is_terminal=getattr(request, "param", True))
    monkeypatch.setattr(sys, "stdout", screen)
    log_to_stdout()
    return screen


def test_a_terminal_shows_log_lines_above_one_live_line(screen):
    console = Console(screen)
    console.show(["starting"], "")
    assert screen.take() == f"{CLEAR}starting\n"
    console.show([], "step 1/2")
    assert screen.take() == f"{CLEAR}step 1/2"
    console.show(["saved", "evaluated"], "step 2/2")
    assert screen.take() == f"{CLEAR}saved\nevaluated\nstep 2/2"
    console.show([], "step 2/2", last=True)
    assert screen.take() == f"{CLEAR}step 2/2\n"


def test_an_unchanged_live_line_is_not_rewritten(screen):
    console = Console(screen)
    console.show([], "step 1/2")
    screen.take()
    for _ in range(3):
        console.show([], "step 1/2")
    assert screen.take() == ""


def test_a_terminal_without_a_live_line_stays_empty(screen):
    console = Console(screen)
    console.show([], "")
    console.show([], "", last=True)
    assert screen.take() == ""


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_a_file_gets_the_live_line_every_few_seconds_and_at_the_end(screen, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("rm_ray.tracking.console.time.monotonic", lambda: now[0])
    console = Console(screen, every_s=5.0)
    console.show(["starting"], "step 1/9")
    assert screen.take() == "starting\nstep 1/9\n"
    now[0] = 104.9
    console.show(["saved"], "step 2/9")
    assert screen.take() == "saved\n"
    now[0] = 105.0
    console.show([], "step 3/9")
    console.show([], "step 3/9")
    assert screen.take() == "step 3/9\n"
    console.show([], "step 9/9", last=True)
    assert screen.take() == "step 9/9\n"
