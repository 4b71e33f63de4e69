import threading
from types import SimpleNamespace
from typing import get_args

import pytest

from rm_ray.train import watch as watch_module
from rm_ray.train.pulse import Felt, Phase, Pulse
from rm_ray.train.watch import (
    DATA_S,
    FIRST_STEP_S,
    SILENT_AFTER_S,
    SLOW_S,
    SLOWER,
    STALLED_AFTER_S,
    find_stuck,
    is_steady,
    none_would_save,
)


def felt(
    rank: int,
    *,
    phase: Phase = "training",
    ago: float = 1.0,
    moved: float = 1.0,
    step: int = 7,
    has_stepped: bool = True,
) -> Felt:
    pulse = Pulse(
        rank=rank,
        pid=1000 + rank,
        node_id="node",
        phase=phase,
        step=step,
        num_beats=3,
        stack="",
        startup={"model": 4.0, "first step": 2.0} if has_stepped else {},
    )
    return Felt(pulse=pulse, felt=ago, moved=moved)


def stuck_ranks(ranks: list[Felt], *, slowest_s: float = 0.0) -> list[int]:
    found = find_stuck(ranks, slowest_s=slowest_s)
    return [] if found is None else [one.pulse.rank for one in found.ranks]


def test_ranks_that_go_on_are_not_stuck():
    assert find_stuck([felt(0), felt(1), felt(2)], slowest_s=0.0) is None


def test_no_ranks_are_not_stuck():
    assert find_stuck([], slowest_s=0.0) is None


def test_a_silent_rank_is_named_and_it_alone():
    ranks = [felt(0), felt(1, ago=SILENT_AFTER_S + 1), felt(2)]

    found = find_stuck(ranks, slowest_s=0.0)

    assert found is not None
    assert found.ranks == (ranks[1],)
    assert found.reason == "rank 1 silent for 30 s"


def test_all_silent_ranks_are_named():
    ranks = [felt(0, ago=31), felt(1), felt(2, ago=300)]

    found = find_stuck(ranks, slowest_s=0.0)

    assert found is not None
    assert found.ranks == (ranks[0], ranks[2])
    assert found.reason == "rank 0, 2 silent for 30 s"


def test_a_rank_is_silent_only_after_its_time():
    assert stuck_ranks([felt(0), felt(1, ago=SILENT_AFTER_S)]) == []
    assert stuck_ranks([felt(0), felt(1, ago=SILENT_AFTER_S + 0.01)]) == [1]


@pytest.mark.parametrize("phase", get_args(Phase))
def test_a_silent_rank_is_stuck_whatever_it_does(phase: Phase):
    assert stuck_ranks([felt(0), felt(1, phase=phase, ago=SILENT_AFTER_S + 1)]) == [1]


def test_slow_micro_batches_do_not_make_a_silent_rank_less_silent():
    assert stuck_ranks([felt(0), felt(1, ago=SILENT_AFTER_S + 1)], slowest_s=1_000) == [1]


def test_a_silent_rank_and_not_those_that_wait_for_it_is_stuck():
    waiting = [felt(rank, moved=STALLED_AFTER_S + 1) for rank in (0, 2)]
    ranks = [*waiting, felt(1, ago=SILENT_AFTER_S + 1, moved=STALLED_AFTER_S + 1)]

    assert stuck_ranks(ranks) == [1]


@pytest.mark.parametrize("phase", ["training", "evaluating"])
def test_ranks_that_go_on_no_more_hang_together(phase: Phase):
    ranks = [felt(rank, phase=phase, moved=STALLED_AFTER_S + 1 + rank) for rank in range(3)]

    found = find_stuck(ranks, slowest_s=0.0)

    assert found is not None
    assert found.ranks == tuple(ranks)
    assert found.reason == f"no rank went on for 45 s in step 7 ({phase})"


def test_the_step_told_is_the_one_that_hangs():
    ranks = [felt(0, moved=50, step=8), felt(1, moved=50, step=9), felt(2, moved=50, step=8)]

    found = find_stuck(ranks, slowest_s=0.0)

    assert found is not None
    assert found.reason.endswith("in step 9 (training)")


def test_one_rank_that_goes_on_is_enough():
    ranks = [felt(0, moved=500), felt(1, moved=STALLED_AFTER_S), felt(2, moved=500)]

    assert stuck_ranks(ranks) == []


def test_one_rank_alone_hangs_too():
    assert stuck_ranks([felt(0, moved=STALLED_AFTER_S + 1)]) == [0]


@pytest.mark.parametrize(
    ("slowest_s", "limit"),
    [
        (0.0, STALLED_AFTER_S),
        (STALLED_AFTER_S / SLOWER, STALLED_AFTER_S),
        (20.0, 20.0 * SLOWER),
        (100.0, 100.0 * SLOWER),
    ],
)
def test_slow_micro_batches_raise_the_limit(slowest_s: float, limit: float):
    before = [felt(rank, moved=limit) for rank in range(2)]
    after = [felt(rank, moved=limit + 0.01) for rank in range(2)]

    assert stuck_ranks(before, slowest_s=slowest_s) == []
    found = find_stuck(after, slowest_s=slowest_s)
    assert found is not None
    assert found.reason == f"no rank went on for {limit:.0f} s in step 7 (training)"


@pytest.mark.parametrize("slowest_s", [0.0, 10_000.0])
def test_the_first_step_has_a_limit_of_its_own(slowest_s: float):
    before = [felt(rank, moved=FIRST_STEP_S, has_stepped=False) for rank in range(2)]
    after = [felt(rank, moved=FIRST_STEP_S + 1, has_stepped=False) for rank in range(2)]

    assert stuck_ranks(before, slowest_s=slowest_s) == []
    assert stuck_ranks(after, slowest_s=slowest_s) == [0, 1]


def test_the_first_step_lasts_until_every_rank_has_taken_it():
    ranks = [felt(0, moved=60), felt(1, moved=60, has_stepped=False)]

    assert stuck_ranks(ranks) == []


def test_a_rank_may_be_silent_in_the_first_step_no_longer_than_in_others():
    ranks = [felt(0, has_stepped=False), felt(1, ago=SILENT_AFTER_S + 1, has_stepped=False)]

    assert stuck_ranks(ranks) == [1]


@pytest.mark.parametrize(
    ("phase", "limit"),
    [("starting", SLOW_S), ("saving", SLOW_S), ("exporting", SLOW_S), ("waiting", DATA_S)],
)
def test_where_no_micro_batches_are_it_takes_long_to_be_a_stall(phase: Phase, limit: float):
    before = [felt(rank, phase=phase, moved=limit) for rank in range(3)]
    after = [felt(rank, phase=phase, moved=limit + 1) for rank in range(3)]

    assert stuck_ranks(before, slowest_s=1e6) == []
    assert stuck_ranks(after, slowest_s=1e6) == [0, 1, 2]


def test_a_rank_that_waits_for_data_keeps_the_others_waiting():
    ranks = [felt(0, phase="waiting", moved=DATA_S), felt(1, moved=DATA_S)]

    assert stuck_ranks(ranks) == []


@pytest.mark.parametrize("phase", ["starting", "saving", "exporting"])
def test_a_rank_that_trains_while_another_does_not_go_on_hangs_with_it(phase: Phase):
    ranks = [felt(0, phase=phase, moved=60), felt(1, moved=60)]

    assert stuck_ranks(ranks) == [0, 1]


def test_a_rank_that_saves_and_goes_on_keeps_the_others_waiting_without_a_stall():
    """While a save waits for the one before it, its rank beats."""
    ranks = [felt(0, phase="saving", moved=1.0), felt(1, moved=600)]

    assert stuck_ranks(ranks) == []


def test_ranks_that_all_go_through_micro_batches_are_steady():
    assert is_steady([felt(0), felt(1)])
    assert is_steady([felt(0), felt(1, phase="evaluating", moved=600)])


@pytest.mark.parametrize("phase", ["starting", "saving", "exporting"])
def test_ranks_of_which_one_does_something_else_are_not_steady(phase: Phase):
    assert not is_steady([felt(0), felt(1, phase=phase)])


def test_ranks_of_which_one_is_in_its_first_step_are_not_steady():
    assert not is_steady([felt(0), felt(1, has_stepped=False)])


def test_a_run_is_stopped_at_once_only_where_no_step_would_be_lost():
    assert none_would_save([], asked_s=0.5)
    assert none_would_save([felt(0, has_stepped=False, ago=1.0)], asked_s=1.5)
    assert not none_would_save([felt(0, ago=1.0)], asked_s=1.5)
    assert not none_would_save([felt(0, has_stepped=False), felt(1)], asked_s=1.5)


def test_a_pulse_from_before_the_request_may_be_from_before_the_first_step():
    assert not none_would_save([felt(0, has_stepped=False, ago=1.0)], asked_s=0.5)


class Answers:
    """A board that gives one answer after another, the last one again and again."""

    def __init__(self, *answers: list[Felt]) -> None:
        self.pulses = self.ask_to_stop = self
        self._answers = list(answers)

    def remote(self, *_: object) -> list[Felt]:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.mark.parametrize(("before", "ends"), [([], True), ([felt(0)], False)])
def test_a_board_that_has_forgotten_the_ranks_ends_no_run_that_takes_steps(
    before, ends, monkeypatch
):
    monkeypatch.setattr(watch_module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(watch_module.ray, "get", lambda answer, timeout: answer)
    stopped, looks = threading.Event(), 0

    def count_fitting() -> int:
        nonlocal looks
        looks += 1
        if looks == 1:
            watch.ask_to_stop("terminated")
        return 1

    watch = watch_module.Watch(
        Answers(before, []),
        num_workers=1,
        count_fitting=count_fitting,
        on_look=lambda _: None,
        on_loss=lambda _: None,
        on_stop=lambda _: stopped.set(),
    )
    watch._board.ask_to_stop = SimpleNamespace(remote=lambda _: None)
    with watch:
        assert stopped.wait(10.0 if ends else 0.5) == ends
        assert looks > 1
