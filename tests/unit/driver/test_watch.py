import threading
from typing import Any

import pytest
from heartbeats import reading
from local_actor import LocalActor, use_local_actors

from rm_ray.cluster.timeouts import LOOKS, SILENT_AFTER_S
from rm_ray.driver import watch as watch_module
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.stop_request import StopRequest
from rm_ray.driver.watch import Watch, describe_progress
from rm_ray.runs.attempts import Ending
from rm_ray.tracking.heartbeat import RESIZED, HeartbeatReading

SECONDS = 240.0


class Answers:
    """A channel that returns given lists of heartbeats in order, then repeats the last."""

    def __init__(self, *answers: list[HeartbeatReading]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def heartbeats(self) -> list[HeartbeatReading]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def ask_to_stop(self, reason: str) -> None:
        self.asked.append(reason)


class Noted(AttemptHandle):
    """An attempt handle that records its reports to the supervisor."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []
        self.ends: list[tuple[Ending, str]] = []
        self.ended = threading.Event()

    def tell(self, changed: dict[str, Any]) -> None:
        self.told.append(changed)

    def end(self, ending: Ending, cause: str) -> None:
        self.ends.append((ending, cause))
        self.ended.set()


class Unsent:
    """A sender with unsent items."""

    unsent = 5


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    use_local_actors(monkeypatch)
    monkeypatch.setattr(watch_module, "LOOK_EVERY_S", 0.01)


class Room:
    """The number of workers that fit, with a count of the calls."""

    def __init__(self, num_fitting: int, *, looks: int = 5) -> None:
        self.num_fitting, self._looks, self._left = num_fitting, threading.Event(), looks

    def count(self) -> int:
        self._left -= 1
        if self._left == 0:
            self._looks.set()
        return self.num_fitting

    def wait(self) -> None:
        assert self._looks.wait(SECONDS)


def watching(channel: Answers, noted: Noted, room: Room) -> tuple[Watch, StopRequest]:
    handle: Any = LocalActor(channel)
    sender: Any = Unsent()
    request = StopRequest(handle)
    watch = Watch(handle, noted, request, sender, num_workers=1, count_fitting=room.count)
    return watch, request


def test_progress_has_rank_0s_step_and_the_unsent_items():
    ranks = [reading(1, step=9), reading(0, step=8)]

    assert describe_progress(ranks, unsent=5) == {
        "step": 8,
        "first_step": ranks[1].beat.first_step,
        "startup": {"model": 4.0, "first step": 2.0},
        "spent": ranks[1].beat.spent,
        "mlflow_unsent": 5,
    }


def test_ranks_that_make_progress_are_reported_and_left_alone():
    channel, noted, room = Answers([reading(0, step=8)]), Noted(), Room(1)

    watch, _ = watching(channel, noted, room)
    with watch:
        room.wait()

    assert (watch.hang, channel.asked, noted.ends) == (None, [], [])
    assert noted.told[0]["step"] == 8


def test_hung_ranks_are_killed_and_no_longer_watched(monkeypatch: pytest.MonkeyPatch):
    ended: list[list[int]] = []
    monkeypatch.setattr(
        watch_module,
        "end_hung_workers",
        lambda hang, heartbeats: ended.append([one.beat.rank for one in hang.ranks]),
    )
    silent = reading(0, ago=SILENT_AFTER_S + 1)
    watch, _ = watching(Answers([silent]), Noted(), Room(1))

    with watch:
        watch.join(SECONDS)
        assert not watch.is_alive()

    assert watch.hang is not None
    assert ended == [[0]]


def test_a_run_stops_to_resume_with_more_workers():
    channel, room = Answers([reading(0)]), Room(2, looks=LOOKS + 2)
    watch, request = watching(channel, Noted(), room)

    with watch:
        room.wait()

    assert request.reason == RESIZED
    assert set(channel.asked) == {RESIZED}


def test_workers_that_will_not_start_are_given_up():
    noted = Noted()
    watch, _ = watching(Answers([]), noted, Room(0))

    with watch:
        assert noted.ended.wait(SECONDS)

    assert noted.ends[0] == ("lost", "a machine was lost before the workers started")


@pytest.mark.parametrize(("before", "ends"), [([], True), ([reading(0)], False)])
def test_a_restarted_channel_does_not_end_a_run_that_has_taken_steps(
    before: list[HeartbeatReading], ends: bool
):
    noted, room = Noted(), Room(1, looks=20)
    watch, request = watching(Answers(before, []), noted, room)
    with watch:
        while not noted.told and not ends:
            pass  # wait until the stepping rank has been seen
        request.ask("terminated")
        room.wait()

    assert (("stopped", "terminated") in noted.ends) == ends
