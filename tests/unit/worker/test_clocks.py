import logging
import time
from typing import Any

import pytest
import torch
from moved_clock import MovedClock
from plain_training import PlainHeartbeat

from rm_ray.batches.labels import pair_labels
from rm_ray.data.cache.group_tokens import TokenCounts
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.runs.startup import Startup
from rm_ray.train.metrics import GroupMetrics
from rm_ray.train.progress import Progress
from rm_ray.worker import clocks as clocks_module
from rm_ray.worker.clocks import Clocks


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovedClock:
    clock = MovedClock()
    monkeypatch.setattr(clocks_module, "time", clock)
    return clock


def make(progress: Progress | None = None) -> tuple[Clocks, Any]:
    heartbeat: Any = PlainHeartbeat()
    startup = Startup(began=time.time())
    return Clocks(progress or Progress(), heartbeat, startup, run_began=900.0), heartbeat


def four_pairs() -> GroupMetrics:
    metrics = GroupMetrics.zero(torch.device("cpu"))
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0])
    labels = pair_labels(torch.zeros(2), torch.ones(2))
    losses = BradleyTerry()(rewards, labels)
    for _ in range(2):
        metrics.add(rewards, losses, labels, tokens=TokenCounts(40, 30, 35))
    metrics.add_flops(7.0)
    return metrics


def test_seconds_count_for_the_run_and_for_the_attempt(clock: MovedClock):
    progress = Progress(spent={"evaluation": 100.0})
    clocks, heartbeat = make(progress)
    with clocks.spending("evaluation"):
        clock.now += 5
    clocks.spend("checkpoints", 2.0)
    assert progress.spent == {"evaluation": 105.0, "checkpoints": 2.0}
    assert heartbeat.spent == {"evaluation": 5.0, "checkpoints": 2.0}


def test_the_heartbeat_thread_never_sees_a_dictionary_change(clock: MovedClock):
    clocks, heartbeat = make()
    clocks.spend("steps", 1.0)
    sent = heartbeat.spent
    clocks.spend("data wait", 1.0)
    assert sent == {"steps": 1.0}


def test_a_block_that_raises_does_not_count(clock: MovedClock):
    clocks, heartbeat = make()
    with pytest.raises(ValueError), clocks.spending("evaluation"):
        clock.now += 5
        raise ValueError
    assert clocks.progress.spent == heartbeat.spent == {}


def test_the_data_wait_excludes_the_work_on_a_step(clock: MovedClock):
    clocks, _ = make()

    def load():
        for wait in (3.0, 0.5):
            clock.now += wait
            yield wait

    waits = []
    for _ in clocks.count_waits(load()):
        waits.append(clocks.data_wait)
        clock.now += 60
    assert waits == [3.0, 0.5]


def test_the_first_step_ends_the_startup_and_later_ones_count_for_the_speed(
    clock: MovedClock, caplog
):
    clocks, heartbeat = make(Progress(step=7))
    clocks.start()
    assert heartbeat.first_step == 7
    with caplog.at_level(logging.INFO):
        clocks.data_wait = 2.0
        assert clocks.end_step(four_pairs(), 3.0) == 5.0
    assert list(heartbeat.startup) == ["model", "first step"]
    assert caplog.records[-1].getMessage().startswith("first step after ")
    assert clocks.progress.timed_groups == 0
    clocks.data_wait = 1.0
    assert clocks.end_step(four_pairs(), 1.5) == 2.5
    progress = clocks.progress
    assert (progress.timed_groups, progress.timed_seconds, progress.timed_flops) == (4, 2.5, 7.0)
    assert (progress.timed_tokens, progress.timed_distinct_tokens) == (80, 60)
    assert progress.spent == heartbeat.spent == {"data wait": 3.0, "steps": 4.5}
    assert clocks.attempt == {
        "first_step": 7, "startup": heartbeat.startup, "spent": {"data wait": 3.0, "steps": 4.5},
    }  # fmt: skip


def test_a_run_s_seconds_continue_across_attempts(clock: MovedClock):
    clocks, _ = make(Progress(seconds=50.0))
    clock.now += 30  # while the model is built
    clocks.start()
    clock.now += 4
    clocks.update()
    clock.now += 1
    clocks.update()
    assert clocks.progress.seconds == 55.0


def test_goodput_is_the_share_of_the_run_s_time_spent_in_steps(clock: MovedClock):
    clocks, _ = make(Progress(spent={"steps": 75.0}))
    assert clocks.goodput == 75 / 100
    clock.now += 200
    assert clocks.goodput == 75 / 300
