import io
import json

from local_actor import LocalActor

from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.stop_request import StopRequest
from rm_ray.runs.attempts import Attempt
from rm_ray.runs.startup import Startup


class Asked:
    """A channel that records its requests."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def ask_to_stop(self, reason: str) -> None:
        self.reasons.append(reason)


def test_a_stop_reaches_running_workers():
    asked, attempt_handle = Asked(), AttemptHandle()

    assert not attempt_handle.stop("too early")
    with attempt_handle.stoppable(StopRequest(LocalActor(asked))):
        assert attempt_handle.stop("terminated")
    assert not attempt_handle.stop("too late")  # the attempt has ended and saved

    assert asked.reasons == ["too early", "terminated"]


def test_a_stop_reaches_no_workers_after_they_failed():
    asked, attempt_handle = Asked(), AttemptHandle()

    try:
        with attempt_handle.stoppable(StopRequest(LocalActor(asked))):
            raise ConnectionError
    except ConnectionError:
        assert not attempt_handle.stop("terminated")

    assert asked.reasons == []


def test_the_supervisor_gets_a_line_for_each_change():
    supervisor = io.StringIO()
    attempt_handle = AttemptHandle(supervisor=supervisor)

    attempt_handle.tell({"step": 3})
    attempt_handle.tell({"cause": "two\nlines"})

    assert [json.loads(line) for line in supervisor.getvalue().splitlines()] == [
        {"step": 3},
        {"cause": "two\nlines"},
    ]


def test_without_a_supervisor_nothing_is_reported():
    attempt_handle = AttemptHandle()

    attempt_handle.tell({"step": 3})
    attempt_handle.end("lost", "a machine went")

    assert attempt_handle.earlier == ()


def test_the_start_of_a_run_excludes_gaps_between_attempts():
    first = Attempt(number=1, began=10, updated=70, ending="lost", skips=4)
    second = Attempt(number=2, began=500, updated=540, ending="stopped")
    attempt_handle = AttemptHandle(number=3, startup=Startup(began=1000.0), earlier=[first, second])

    assert attempt_handle.run_began == 900
    assert attempt_handle.skipped == {4}
