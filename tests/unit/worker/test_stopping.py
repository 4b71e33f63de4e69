from typing import Any

import pytest
import torch
from moved_clock import MovedClock
from plain_training import PlainContext, PlainHeartbeat

from rm_ray.tracking.heartbeat import RESIZED
from rm_ray.worker import stopping as stopping_module
from rm_ray.worker.stopping import CHECK_EVERY_S, PREEMPTED, RESIZE_AGAIN_S, Stopping


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MovedClock:
    clock = MovedClock()
    monkeypatch.setattr(stopping_module, "time", clock)
    return clock


def make(
    reason: str | None = None, *, rank: int = 0, preempted_at_check: int = 0
) -> tuple[Stopping, Any, PlainContext]:
    heartbeat: Any = PlainHeartbeat()
    heartbeat.reason_to_stop = reason
    context = PlainContext({}, preempted_at_check=preempted_at_check)
    stopping = Stopping(heartbeat, context, rank=rank, device=torch.device("cpu"), last_step=20)
    return stopping, heartbeat, context


def test_a_rank_votes_to_stop_once_its_heartbeat_has_a_reason():
    stopping, heartbeat, _ = make()
    assert stopping.votes()[0] is False
    heartbeat.reason_to_stop = "signal"
    assert stopping.votes()[0] is True
    assert not stopping.is_stopping  # a vote is not a decision


def test_only_rank_0_requests_preemption_checks_every_few_seconds(clock: MovedClock):
    (first, _, context), (second, _, _) = make(), make(rank=1)
    asked = []
    for _ in range(12):
        asked.append(first.votes()[1])
        assert second.votes()[1] is False
        first.decide((False, asked[-1]))
        clock.now += 1
    assert [i for i, asks in enumerate(asked) if asks] == [0, 6]
    assert context.num_checks == 2
    assert CHECK_EVERY_S == 5


def test_every_rank_checks_if_any_rank_requests_it(clock: MovedClock):
    stopping, _, context = make(rank=1)
    stopping.decide((False, True))
    stopping.decide((False, False))
    assert context.num_checks == 1
    assert not stopping.is_stopping


def test_preemption_stops_the_attempt_whatever_the_heartbeat_says(clock: MovedClock):
    for reason in (None, RESIZED, "signal"):
        stopping, _, _ = make(reason, rank=1, preempted_at_check=1)
        stopping.decide((False, True))
        assert stopping.is_stopping
        assert stopping.reason == PREEMPTED
        assert stopping.votes() == (True, False)
        assert stopping.end_attempt(7, 0) == {"reason": PREEMPTED, "step": 7, "saved_step": 0}


def test_a_decision_holds_for_one_step():
    stopping, _, _ = make(rank=1)
    stopping.decide((True, False))
    assert stopping.is_stopping
    stopping.decide((False, False))
    assert not stopping.is_stopping


def test_resizing_is_postponed_if_steps_would_be_lost(clock: MovedClock, caplog):
    stopping, _, _ = make(RESIZED, rank=1)
    stopping.decide(stopping.votes())
    assert stopping.is_stopping
    assert stopping.end_attempt(10, saved_step=5) is None
    assert "no checkpoint" in caplog.text
    assert not stopping.is_stopping
    assert stopping.votes() == (False, False)
    clock.now += RESIZE_AGAIN_S + 1
    assert stopping.votes() == (True, False)
    assert stopping.end_attempt(10, saved_step=10) == {
        "reason": RESIZED, "step": 10, "saved_step": 10,
    }  # fmt: skip


def test_a_more_pressing_reason_is_not_postponed_with_the_resize(clock: MovedClock):
    stopping, heartbeat, _ = make(RESIZED, rank=1)
    assert stopping.end_attempt(10, saved_step=5) is None
    heartbeat.reason_to_stop = "signal"
    assert stopping.votes() == (True, False)
    assert stopping.end_attempt(10, saved_step=5) == {
        "reason": "signal", "step": 10, "saved_step": 5,
    }  # fmt: skip


def test_an_evaluation_is_interrupted_unless_it_is_the_last_one():
    stopping, heartbeat, _ = make(rank=1)
    assert not stopping.interrupts_evaluation(10)
    assert not stopping.is_stopping
    heartbeat.reason_to_stop = "signal"
    assert not stopping.interrupts_evaluation(20)
    assert not stopping.is_stopping
    assert stopping.interrupts_evaluation(10)
    assert stopping.is_stopping
