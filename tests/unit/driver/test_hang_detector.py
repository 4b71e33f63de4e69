import threading
from types import SimpleNamespace
from typing import get_args

import pytest

from rm_ray.cluster.timeouts import (
    CONNECT_S,
    DATA_S,
    FIRST_STEP_S,
    SILENT_AFTER_S,
    SLOW_S,
    SLOWER,
    SLOWER_THAN_FIRST,
    STALLED_AFTER_S,
)
from rm_ray.driver import hang_detector
from rm_ray.driver.hang_detector import Hang, Pace, find_hang, none_would_save
from rm_ray.tracking.heartbeat import Beat, HeartbeatReading, Phase


def reading(
    rank: int,
    *,
    phase: Phase = "training",
    ago: float = 1.0,
    moved: float = 1.0,
    step: int = 7,
    has_stepped: bool = True,
) -> HeartbeatReading:
    beat = Beat(
        rank=rank,
        pid=1000 + rank,
        node_id="node",
        phase=phase,
        step=step,
        num_beats=3,
        stack="",
        startup={"model": 4.0, "first step": 2.0} if has_stepped else {},
    )
    return HeartbeatReading(beat=beat, received=ago, moved=moved)


def stuck_ranks(ranks: list[HeartbeatReading], *, stall_s: float = STALLED_AFTER_S) -> list[int]:
    found = find_hang(ranks, stall_s=stall_s)
    return [] if found is None else [one.beat.rank for one in found.ranks]


def find_by_default(ranks: list[HeartbeatReading]) -> Hang | None:
    return find_hang(ranks, stall_s=STALLED_AFTER_S)


def test_ranks_that_go_on_are_not_stuck():
    assert find_hang([reading(0), reading(1), reading(2)], stall_s=STALLED_AFTER_S) is None


def test_no_ranks_are_not_stuck():
    assert find_hang([], stall_s=STALLED_AFTER_S) is None


def test_a_silent_rank_is_named_and_it_alone():
    ranks = [reading(0), reading(1, ago=SILENT_AFTER_S + 1), reading(2)]

    found = find_hang(ranks, stall_s=STALLED_AFTER_S)

    assert found is not None
    assert found.ranks == (ranks[1],)
    assert found.reason == "rank 1 silent for 30 s"


def test_all_silent_ranks_are_named():
    ranks = [reading(0, ago=31), reading(1), reading(2, ago=300)]

    found = find_hang(ranks, stall_s=STALLED_AFTER_S)

    assert found is not None
    assert found.ranks == (ranks[0], ranks[2])
    assert found.reason == "rank 0, 2 silent for 30 s"


def test_a_rank_is_silent_only_after_its_time():
    assert stuck_ranks([reading(0), reading(1, ago=SILENT_AFTER_S)]) == []
    assert stuck_ranks([reading(0), reading(1, ago=SILENT_AFTER_S + 0.01)]) == [1]


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_silent_rank_is_stuck_whatever_it_does(phase: Phase):
    assert stuck_ranks([reading(0), reading(1, phase=phase, ago=SILENT_AFTER_S + 1)]) == [1]


def test_slow_micro_batches_do_not_make_a_silent_rank_less_silent():
    assert stuck_ranks([reading(0), reading(1, ago=SILENT_AFTER_S + 1)], stall_s=1_000) == [1]


def test_a_silent_rank_and_not_those_that_wait_for_it_is_stuck():
    waiting = [reading(rank, moved=STALLED_AFTER_S + 1) for rank in (0, 2)]
    ranks = [*waiting, reading(1, ago=SILENT_AFTER_S + 1, moved=STALLED_AFTER_S + 1)]

    assert stuck_ranks(ranks) == [1]


@pytest.mark.parametrize("phase", ["training", "evaluating"])
def test_ranks_that_go_on_no_more_hang_together(phase: Phase):
    ranks = [reading(rank, phase=phase, moved=STALLED_AFTER_S + 1 + rank) for rank in range(3)]

    found = find_hang(ranks, stall_s=STALLED_AFTER_S)

    assert found is not None
    assert found.ranks == tuple(ranks)
    assert found.reason == f"no rank went on for 45 s in step 7 ({phase})"


def test_the_step_told_is_the_one_that_hangs():
    ranks = [
        reading(0, moved=50, step=8),
        reading(1, moved=50, step=9),
        reading(2, moved=50, step=8),
    ]

    found = find_hang(ranks, stall_s=STALLED_AFTER_S)

    assert found is not None
    assert found.reason.endswith("in step 9 (training)")


def test_one_rank_that_goes_on_is_enough():
    ranks = [
        reading(0, moved=500),
        reading(1, moved=STALLED_AFTER_S),
        reading(2, moved=500),
    ]

    assert stuck_ranks(ranks) == []


def test_one_rank_alone_hangs_too():
    assert stuck_ranks([reading(0, moved=STALLED_AFTER_S + 1)]) == [0]


@pytest.mark.parametrize("limit", [STALLED_AFTER_S, 500.0])
def test_ranks_hang_once_they_stand_still_for_longer_than_their_pace_allows(limit: float):
    before = [reading(rank, moved=limit) for rank in range(2)]
    after = [reading(rank, moved=limit + 0.01) for rank in range(2)]

    assert stuck_ranks(before, stall_s=limit) == []
    found = find_hang(after, stall_s=limit)
    assert found is not None
    assert found.reason == f"no rank went on for {limit:.0f} s in step 7 (training)"


def seen(*looks: HeartbeatReading) -> float:
    """Return for how long one rank may stand still after these looks at it."""
    pace = Pace()
    for one in looks:
        pace.look([one])
    return pace.stall_s


def test_ranks_of_which_nothing_is_known_may_stand_still_for_a_little():
    assert seen() == STALLED_AFTER_S
    assert seen(reading(0, moved=40), reading(0, moved=42)) == STALLED_AFTER_S  # not at its end yet


@pytest.mark.parametrize("phase", ["waiting", "training", "evaluating"])
def test_slow_micro_batches_may_be_slow_again(phase: Phase):
    slow = reading(0, phase=phase, moved=20)

    assert seen(reading(0), slow, reading(0, moved=1)) == 20 * SLOWER
    assert (
        seen(reading(0), slow, reading(0, moved=1), reading(0, moved=3), reading(0)) == 20 * SLOWER
    )


@pytest.mark.parametrize("phase", ["starting", "saving", "exporting"])
def test_what_is_no_micro_batch_says_nothing_of_how_long_one_takes(phase: Phase):
    assert (
        seen(reading(0), reading(0, phase=phase, moved=100), reading(0, moved=1)) == STALLED_AFTER_S
    )


def test_a_slow_first_step_counts_until_a_later_micro_batch_is_known():
    first = [reading(0, moved=moved, has_stepped=False) for moved in (10, 60, 1, 50)]
    stepped = [*first, reading(0, moved=1)]

    assert seen(*stepped) == 60 * SLOWER_THAN_FIRST
    assert seen(*stepped, reading(0, moved=58)) == 60 * SLOWER_THAN_FIRST
    assert seen(*stepped, reading(0, moved=58), reading(0, moved=1)) == 58 * SLOWER
    assert seen(*stepped, reading(0, moved=2), reading(0, moved=1)) == STALLED_AFTER_S


@pytest.mark.parametrize("seconds", [20, 50, 100, 295])
def test_a_machine_that_takes_long_for_every_micro_batch_is_left_alone(seconds: int):
    pace = Pace()
    for now in range(0, 12 * seconds, 2):  # four micro-batches a step
        rank = reading(0, moved=now % seconds, has_stepped=now // seconds >= 4)
        assert find_hang([rank], stall_s=pace.stall_s) is None
        pace.look([rank])


@pytest.mark.parametrize("stall_s", [STALLED_AFTER_S, 10_000.0])
def test_the_first_step_has_a_limit_of_its_own(stall_s: float):
    before = [reading(rank, moved=FIRST_STEP_S, has_stepped=False) for rank in range(2)]
    after = [reading(rank, moved=FIRST_STEP_S + 1, has_stepped=False) for rank in range(2)]

    assert stuck_ranks(before, stall_s=stall_s) == []
    assert stuck_ranks(after, stall_s=stall_s) == [0, 1]


def test_the_first_step_lasts_until_every_rank_has_taken_it():
    ranks = [reading(0, moved=60), reading(1, moved=60, has_stepped=False)]

    assert stuck_ranks(ranks) == []


def test_a_rank_may_be_silent_in_the_first_step_no_longer_than_in_others():
    ranks = [
        reading(0, has_stepped=False),
        reading(1, ago=SILENT_AFTER_S + 1, has_stepped=False),
    ]

    assert stuck_ranks(ranks) == [1]


@pytest.mark.parametrize(
    ("phase", "limit"),
    [
        ("starting", SLOW_S),
        ("connecting", CONNECT_S),
        ("saving", SLOW_S),
        ("exporting", SLOW_S),
        ("waiting", DATA_S),
    ],
)
def test_where_no_micro_batches_are_it_takes_long_to_be_a_stall(phase: Phase, limit: float):
    before = [reading(rank, phase=phase, moved=limit) for rank in range(3)]
    after = [reading(rank, phase=phase, moved=limit + 1) for rank in range(3)]

    assert stuck_ranks(before, stall_s=1e6) == []
    assert stuck_ranks(after, stall_s=1e6) == [0, 1, 2]


def test_ranks_that_cannot_connect_would_not_the_next_time_either():
    hanging = [reading(rank, phase="connecting", moved=CONNECT_S + 1) for rank in range(2)]
    loading = [reading(rank, phase="starting", moved=SLOW_S + 1) for rank in range(2)]

    assert [found.signature for found in map(find_by_default, (hanging, loading)) if found] == [
        "connecting",
        "",
    ]


def test_a_rank_that_connects_while_others_load_the_model_is_not_waited_for_less():
    ranks = [
        reading(0, phase="connecting", moved=CONNECT_S + 1),
        reading(1, phase="starting", moved=1),
    ]
    later = [
        reading(0, phase="connecting", moved=SLOW_S),
        reading(1, phase="starting", moved=SLOW_S),
    ]

    assert stuck_ranks(ranks) == stuck_ranks(later) == []


def test_a_rank_that_waits_for_data_keeps_the_others_waiting():
    ranks = [reading(0, phase="waiting", moved=DATA_S), reading(1, moved=DATA_S)]

    assert stuck_ranks(ranks) == []


@pytest.mark.parametrize("phase", ["starting", "saving", "exporting"])
def test_a_rank_that_trains_while_another_does_not_go_on_hangs_with_it(phase: Phase):
    ranks = [reading(0, phase=phase, moved=60), reading(1, moved=60)]

    assert stuck_ranks(ranks) == [0, 1]


def test_a_rank_that_saves_and_goes_on_keeps_the_others_waiting_without_a_stall():
    """While a save waits for the one before it, its rank beats."""
    ranks = [reading(0, phase="saving", moved=1.0), reading(1, moved=600)]

    assert stuck_ranks(ranks) == []


def test_a_run_is_stopped_at_once_only_where_no_step_would_be_lost():
    assert none_would_save([], asked_s=0.5)
    assert none_would_save([reading(0, has_stepped=False, ago=1.0)], asked_s=1.5)
    assert not none_would_save([reading(0, ago=1.0)], asked_s=1.5)
    assert not none_would_save([reading(0, has_stepped=False), reading(1)], asked_s=1.5)


def test_a_pulse_from_before_the_request_may_be_from_before_the_first_step():
    assert not none_would_save([reading(0, has_stepped=False, ago=1.0)], asked_s=0.5)


class Answers:
    """A board that gives one answer after another, the last one again and again."""

    def __init__(self, *answers: list[HeartbeatReading]) -> None:
        self.heartbeats = self.ask_to_stop = self
        self._answers = list(answers)

    def remote(self, *_: object) -> list[HeartbeatReading]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.mark.parametrize(("before", "ends"), [([], True), ([reading(0)], False)])
def test_a_board_that_has_forgotten_the_ranks_ends_no_run_that_takes_steps(
    before, ends, monkeypatch
):
    monkeypatch.setattr(hang_detector, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(hang_detector.ray, "get", lambda answer, timeout: answer)
    stopped, looks = threading.Event(), 0

    def count_fitting() -> int:
        nonlocal looks
        looks += 1
        if looks == 1:
            watch.ask_to_stop("terminated")
        return 1

    watch = hang_detector.Watch(
        Answers(before, []),
        num_workers=1,
        count_fitting=count_fitting,
        on_look=lambda _: None,
        on_loss=lambda _: None,
        on_stop=lambda _: stopped.set(),
    )
    watch._channel.ask_to_stop = SimpleNamespace(remote=lambda _: None)
    with watch:
        assert stopped.wait(10.0 if ends else 0.5) == ends
        assert looks > 1
