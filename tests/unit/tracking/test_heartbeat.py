import os
import threading
import time
from types import SimpleNamespace

import pytest
import ray
from local_actor import LocalActor, use_local_actors

from rm_ray.tracking import heartbeat as heartbeat_module
from rm_ray.tracking.heartbeat import RESIZED, Beat, Heartbeat, more_pressing


@pytest.mark.parametrize(
    ("reason", "other", "expected"),
    [
        (None, None, None),
        (None, RESIZED, RESIZED),
        (RESIZED, None, RESIZED),
        (RESIZED, "terminated", "terminated"),
        ("terminated", RESIZED, "terminated"),
        ("terminated", "interrupted", "terminated"),
    ],
)
def test_the_first_reason_to_stop_wins_but_any_other_beats_a_resize(reason, other, expected):
    assert more_pressing(reason, other) == expected


class Driver:
    """Accepts beats, and answers with the test's reason to stop."""

    def __init__(self) -> None:
        self.beats: list[Beat] = []
        self.reason: str | None = None
        self.is_gone = False
        self.changed = threading.Condition()

    def beat(self, beat: Beat) -> str | None:
        with self.changed:
            self.beats.append(beat)
            self.changed.notify_all()
        if self.is_gone:
            raise ray.exceptions.RayActorError
        return self.reason

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.beats) >= count, timeout=240)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    use_local_actors(monkeypatch)
    context = SimpleNamespace(get_node_id=lambda: "node-1")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(heartbeat_module, "BEAT_EVERY_S", 0.01)
    return Driver()


def test_a_beat_reports_the_state_of_training(driver):
    with Heartbeat(LocalActor(driver), rank=3) as heartbeat:
        driver.wait_for(1)
        heartbeat.first_step = 5
        heartbeat.startup = {"imports": 2.0}
        heartbeat.spent = {"steps": 7.0}
        heartbeat.enter("training", 6)
        heartbeat.beat()
    first, last = driver.beats[0], driver.beats[-1]
    assert (first.phase, first.step, first.num_beats, first.first_step) == ("starting", 0, 0, None)
    assert (last.rank, last.pid, last.node_id) == (3, os.getpid(), "node-1")
    assert (last.phase, last.step, last.num_beats) == ("training", 6, 2)
    assert (last.first_step, last.startup, last.spent) == (5, {"imports": 2.0}, {"steps": 7.0})
    assert "test_a_beat_reports_the_state_of_training" in first.stack


def test_a_reason_to_stop_is_received_and_a_signal_beats_a_resize(driver):
    with Heartbeat(LocalActor(driver), rank=0) as heartbeat:
        driver.wait_for(1)
        assert heartbeat.reason_to_stop is None
        driver.reason = RESIZED
        driver.wait_for(len(driver.beats) + 2)
        assert heartbeat.reason_to_stop == RESIZED
        driver.reason = "terminated"
        driver.wait_for(len(driver.beats) + 2)
        assert heartbeat.reason_to_stop == "terminated"


def test_the_thread_ends_with_its_driver(driver):
    driver.is_gone = True
    heartbeat = Heartbeat(LocalActor(driver), rank=0)
    heartbeat.start()
    heartbeat.join(240)
    assert not heartbeat.is_alive()
    assert len(driver.beats) == 1
    time.sleep(0.05)
    assert len(driver.beats) == 1
