from typing import get_args

import pytest
from heartbeats import reading

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
from rm_ray.driver.hang_detector import Hang, Pace, find_hang
from rm_ray.tracking.heartbeat import HeartbeatReading, Phase


def stuck_ranks(ranks: list[HeartbeatReading], *, stall_s: float = STALLED_AFTER_S) -> list[int]:
    found = find_hang(ranks, stall_s=stall_s)
    return [] if found is None else [one.beat.rank for one in found.ranks]


def find_by_default(ranks: list[HeartbeatReading]) -> Hang | None:
    return find_hang(ranks, stall_s=STALLED_AFTER_S)


def test_ranks_that_make_progress_are_not_stuck():
    assert find_hang([reading(0), reading(1), reading(2)], stall_s=STALLED_AFTER_S) is None


def test_no_ranks_are_not_stuck():
    assert find_hang([], stall_s=STALLED_AFTER_S) is None


def test_only_the_silent_rank_is_named():
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


def test_a_rank_is_silent_only_after_the_limit():
    assert stuck_ranks([reading(0), reading(1, ago=SILENT_AFTER_S)]) == []
    assert stuck_ranks([reading(0), reading(1, ago=SILENT_AFTER_S + 0.01)]) == [1]


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_silent_rank_is_stuck_in_any_phase(phase: Phase):
    assert stuck_ranks([reading(0), reading(1, phase=phase, ago=SILENT_AFTER_S + 1)]) == [1]


def test_slow_micro_batches_do_not_extend_the_limit_on_silence():
    assert stuck_ranks([reading(0), reading(1, ago=SILENT_AFTER_S + 1)], stall_s=1_000) == [1]


def test_a_silent_rank_is_stuck_but_not_the_ranks_waiting_for_it():
    waiting = [reading(rank, moved=STALLED_AFTER_S + 1) for rank in (0, 2)]
    ranks = [*waiting, reading(1, ago=SILENT_AFTER_S + 1, moved=STALLED_AFTER_S + 1)]

    assert stuck_ranks(ranks) == [1]


@pytest.mark.parametrize("phase", ["training", "evaluating"])
def test_ranks_that_all_stop_moving_hang_together(phase: Phase):
    ranks = [reading(rank, phase=phase, moved=STALLED_AFTER_S + 1 + rank) for rank in range(3)]

    found = find_hang(ranks, stall_s=STALLED_AFTER_S)

    assert found is not None
    assert found.ranks == tuple(ranks)
    assert found.reason == f"no rank made progress for 45 s in step 7 ({phase})"


def test_the_reported_step_is_the_hanging_one():
    ranks = [
        reading(0, moved=50, step=8),
        reading(1, moved=50, step=9),
        reading(2, moved=50, step=8),
    ]

    found = find_hang(ranks, stall_s=STALLED_AFTER_S)

    assert found is not None
    assert found.reason.endswith("in step 9 (training)")


def test_one_rank_that_makes_progress_is_enough():
    ranks = [
        reading(0, moved=500),
        reading(1, moved=STALLED_AFTER_S),
        reading(2, moved=500),
    ]

    assert stuck_ranks(ranks) == []


def test_a_single_rank_can_hang():
    assert stuck_ranks([reading(0, moved=STALLED_AFTER_S + 1)]) == [0]


@pytest.mark.parametrize("limit", [STALLED_AFTER_S, 500.0])
def test_ranks_hang_once_they_exceed_the_stall_limit(limit: float):
    before = [reading(rank, moved=limit) for rank in range(2)]
    after = [reading(rank, moved=limit + 0.01) for rank in range(2)]

    assert stuck_ranks(before, stall_s=limit) == []
    found = find_hang(after, stall_s=limit)
    assert found is not None
    assert found.reason == f"no rank made progress for {limit:.0f} s in step 7 (training)"


def seen(*looks: HeartbeatReading) -> float:
    """Return the stall limit after these looks at one rank."""
    pace = Pace()
    for one in looks:
        pace.look([one])
    return pace.stall_s


def test_the_stall_limit_has_a_minimum_before_anything_is_known():
    assert seen() == STALLED_AFTER_S
    assert (
        seen(reading(0, moved=40), reading(0, moved=42)) == STALLED_AFTER_S
    )  # the pause is not over


@pytest.mark.parametrize("phase", ["waiting", "training", "evaluating"])
def test_slow_micro_batches_raise_the_stall_limit(phase: Phase):
    slow = reading(0, phase=phase, moved=20)

    assert seen(reading(0), slow, reading(0, moved=1)) == 20 * SLOWER
    assert (
        seen(reading(0), slow, reading(0, moved=1), reading(0, moved=3), reading(0)) == 20 * SLOWER
    )


@pytest.mark.parametrize("phase", ["starting", "saving", "exporting"])
def test_other_phases_do_not_change_the_stall_limit(phase: Phase):
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
def test_a_uniformly_slow_machine_is_left_alone(seconds: int):
    pace = Pace()
    for now in range(0, 12 * seconds, 2):  # four micro-batches per step
        rank = reading(0, moved=now % seconds, has_stepped=now // seconds >= 4)
        assert find_hang([rank], stall_s=pace.stall_s) is None
        pace.look([rank])


@pytest.mark.parametrize("stall_s", [STALLED_AFTER_S, 10_000.0])
def test_the_first_step_has_its_own_limit(stall_s: float):
    before = [reading(rank, moved=FIRST_STEP_S, has_stepped=False) for rank in range(2)]
    after = [reading(rank, moved=FIRST_STEP_S + 1, has_stepped=False) for rank in range(2)]

    assert stuck_ranks(before, stall_s=stall_s) == []
    assert stuck_ranks(after, stall_s=stall_s) == [0, 1]


def test_the_first_step_lasts_until_every_rank_has_taken_it():
    ranks = [reading(0, moved=60), reading(1, moved=60, has_stepped=False)]

    assert stuck_ranks(ranks) == []


def test_the_limit_on_silence_is_the_same_in_the_first_step():
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
def test_phases_without_micro_batches_have_longer_limits(phase: Phase, limit: float):
    before = [reading(rank, phase=phase, moved=limit) for rank in range(3)]
    after = [reading(rank, phase=phase, moved=limit + 1) for rank in range(3)]

    assert stuck_ranks(before, stall_s=1e6) == []
    assert stuck_ranks(after, stall_s=1e6) == [0, 1, 2]


def test_a_failure_to_connect_has_a_signature():
    hanging = [reading(rank, phase="connecting", moved=CONNECT_S + 1) for rank in range(2)]
    loading = [reading(rank, phase="starting", moved=SLOW_S + 1) for rank in range(2)]

    assert [found.signature for found in map(find_by_default, (hanging, loading)) if found] == [
        "connecting",
        "",
    ]


def test_a_connecting_rank_does_not_shorten_the_limit_for_loading():
    ranks = [
        reading(0, phase="connecting", moved=CONNECT_S + 1),
        reading(1, phase="starting", moved=1),
    ]
    later = [
        reading(0, phase="connecting", moved=SLOW_S),
        reading(1, phase="starting", moved=SLOW_S),
    ]

    assert stuck_ranks(ranks) == stuck_ranks(later) == []


def test_a_rank_waiting_for_data_extends_the_limit_for_all():
    ranks = [reading(0, phase="waiting", moved=DATA_S), reading(1, moved=DATA_S)]

    assert stuck_ranks(ranks) == []


@pytest.mark.parametrize("phase", ["starting", "saving", "exporting"])
def test_a_training_rank_hangs_together_with_a_stuck_one(phase: Phase):
    ranks = [reading(0, phase=phase, moved=60), reading(1, moved=60)]

    assert stuck_ranks(ranks) == [0, 1]


def test_a_rank_that_beats_while_saving_keeps_the_others_alive():
    """A rank beats while its save waits for the previous one to finish."""
    ranks = [reading(0, phase="saving", moved=1.0), reading(1, moved=600)]

    assert stuck_ranks(ranks) == []


def test_a_hang_loses_the_attempt():
    lost = Hang(ranks=(), reason="no rank made progress", signature="connecting").error

    assert (lost.cause, lost.signature, lost.is_outage) == (
        "no rank made progress",
        "connecting",
        False,
    )
