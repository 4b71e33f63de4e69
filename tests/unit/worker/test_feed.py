from types import SimpleNamespace
from typing import Any

from plain_training import PlainHeartbeat

from rm_ray.worker.feed import ready_steps

COLLATOR: Any = SimpleNamespace(lay_out=lambda step: [*step, "laid out"], move=lambda step: step)


def test_the_heartbeat_waits_for_each_step_and_then_trains():
    heartbeat: Any = PlainHeartbeat()
    steps: Any = [["a"], ["b"]]
    computed = [
        (step, heartbeat.phases[-1])
        for step in ready_steps(steps, COLLATOR, heartbeat, "training", lambda: 7)
    ]
    assert computed == [
        (["a", "laid out"], ("training", 7)),
        (["b", "laid out"], ("training", 7)),
    ]
    assert heartbeat.phases == [("waiting", 7), ("training", 7)] * 3


def test_the_heartbeat_reports_the_current_step():
    heartbeat: Any = PlainHeartbeat()
    done: list[Any] = []
    steps: Any = [["a"], ["b"]]
    for step in ready_steps(steps, COLLATOR, heartbeat, "training", lambda: len(done) + 1):
        done.append(step)
    assert heartbeat.phases == [
        ("waiting", 1), ("training", 1), ("waiting", 2), ("training", 2), ("waiting", 3),
        ("training", 3),
    ]  # fmt: skip
