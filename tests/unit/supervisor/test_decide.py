from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.runs.attempts import Attempt, Ending
from rm_ray.supervisor.decide import (
    DEATHS_WITHOUT_PROGRESS,
    LONGEST_DELAY_S,
    OUTAGE_DELAY_S,
)
from rm_ray.supervisor.decide import (
    decide as decide_by,
)

decide = partial(decide_by, patience_s=0.0)


def ended(
    ending: Ending, *, step: int = 10, cause: str = "rank 1 died", signature: str = ""
) -> Attempt:
    return Attempt(
        number=1, began=0, updated=1, ending=ending, step=step, cause=cause, signature=signature
    )


def lost(step: int, signature: str = "", *, first_step: int | None = None) -> Attempt:
    cause = signature or "rank 1 died"
    attempt = ended("lost", step=step, cause=cause, signature=signature)
    return replace(attempt, first_step=first_step)


def goes_on(attempts: Sequence[Attempt]) -> bool:
    try:
        decide(attempts)
    except TrainingError:
        return False
    return True


def test_a_refused_attempt_is_an_input_error():
    with pytest.raises(InputError) as caught:
        decide([lost(1), ended("refused", cause="data.train is empty")])
    assert str(caught.value) == "data.train is empty"


def test_a_failed_attempt_ends_training():
    with pytest.raises(TrainingError) as caught:
        decide([ended("failed", cause="the loss of step 3 is not a finite number")])
    assert str(caught.value) == "the loss of step 3 is not a finite number"


@pytest.mark.parametrize("reason", ["interrupted", "terminated"])
def test_a_signal_that_was_obeyed_ends_the_command(reason: str):
    with pytest.raises(StoppedError) as caught:
        decide([ended("stopped", cause=reason, step=12)])
    assert (caught.value.reason, caught.value.step) == (reason, 12)


@pytest.mark.parametrize("reason", ["resized", "preempted"])
def test_any_other_stop_resumes_immediately(reason: str):
    assert decide([ended("stopped", cause=reason)]) == 0
    assert decide([ended("stopped", cause=reason)] * (DEATHS_WITHOUT_PROGRESS + 1)) == 0


def test_the_first_loss_is_retried_immediately():
    assert decide([lost(0)]) == 0
    assert decide([lost(7)]) == 0


@pytest.mark.parametrize("first_step", [None, 0, 5])
def test_delays_grow_with_losses_without_progress(first_step: int | None):
    again = [lost(7, first_step=first_step)]
    delays = [decide(again * count) for count in range(1, DEATHS_WITHOUT_PROGRESS)]

    assert delays == [0, 2, 4, 8, 16, 30, 30]
    assert max(delays) <= LONGEST_DELAY_S


def test_repeated_losses_without_progress_end_training():
    with pytest.raises(TrainingError) as caught:
        decide([lost(7)] * DEATHS_WITHOUT_PROGRESS)

    assert str(caught.value) == (
        "8 attempts in a row were lost at step 7, the last one because rank 1 died. The "
        "checkpoints are kept; rerun the same command to retry"
    )


def test_progress_resets_the_count():
    before = [lost(7, first_step=5)] * (DEATHS_WITHOUT_PROGRESS - 1)
    further = lost(8, first_step=6)

    assert decide([*before, further]) == 0
    assert decide([*before, further, further]) == 2
    assert goes_on([*before, *[further] * (DEATHS_WITHOUT_PROGRESS - 1)])
    assert not goes_on([*before, *[further] * DEATHS_WITHOUT_PROGRESS])


@pytest.mark.parametrize("first_step", [None, 0, 4, 5])
def test_progress_means_starting_from_a_later_step_than_ever(first_step: int | None):
    before = [lost(7, first_step=5)] * (DEATHS_WITHOUT_PROGRESS - 1)

    # It lost the newest checkpoint, did not start training, or made a few steps.
    assert not goes_on([*before, lost(9, first_step=first_step)])
    assert decide([lost(7, first_step=5), lost(9, first_step=first_step)]) == 2


def test_catching_up_is_no_progress():
    attempts = [lost(7, first_step=first) for first in (5, None, 3, 5)]

    assert decide(attempts) == 8
    assert decide([*attempts, lost(7, first_step=6)]) == 0


@given(st.lists(st.integers(1, 3), min_size=1, max_size=40))
def test_a_run_that_makes_progress_is_retried_forever(gains: list[int]):
    attempts, step = [], 0
    for gain in gains:
        step += gain
        attempts.append(lost(step + 1, signature="an error", first_step=step))
        assert decide(attempts) == 0


def test_a_newly_skipped_step_is_retried_immediately():
    skipping = [replace(lost(7), skips=step) for step in (7, 8)]

    assert decide([lost(7), lost(7), *skipping]) == 0
    assert decide(skipping * DEATHS_WITHOUT_PROGRESS) == 0


def test_the_same_error_twice_without_progress_is_no_accident():
    with pytest.raises(TrainingError) as caught:
        decide([lost(7, "ValueError: x"), lost(7, "ValueError: x")])

    assert str(caught.value) == (
        "the same error came twice at step 7, so the run stops:\nValueError: x\n"
        "Earlier checkpoints are kept"
    )


def test_the_same_error_at_the_same_step_is_no_accident_even_after_a_newer_checkpoint():
    assert not goes_on([lost(8, "ValueError: x"), lost(8, "ValueError: x", first_step=5)])
    assert goes_on([lost(8, "ValueError: x"), lost(8, "KeyError: y", first_step=5)])


def test_the_reported_step_of_the_same_error_may_vary():
    first, second, third = (lost(step, "KeyError: 3", first_step=980) for step in (985, 991, 988))

    assert decide([first]) == 0
    assert not goes_on([first, second])
    assert not goes_on([first, third])
    assert not goes_on([second, third])


def test_the_same_error_before_the_first_step_is_no_accident():
    assert not goes_on([lost(0, "KeyError: 3"), lost(0, "KeyError: 3")])
    assert not goes_on([lost(7, "KeyError: 3", first_step=5), lost(0, "KeyError: 3")])


def test_the_full_cause_of_an_error_is_reported():
    cause = "rank 1 failed: ValueError: x\nTraceback\n  File a\nValueError: x\n"
    twice = [ended("lost", step=7, cause=cause, signature="ValueError: x")] * 2

    with pytest.raises(TrainingError) as caught:
        decide(twice)

    assert cause in str(caught.value)


def test_a_death_between_two_equal_errors_does_not_hide_them():
    assert not goes_on([lost(7, "ValueError: x"), lost(7), lost(7, "ValueError: x")])


@pytest.mark.parametrize(
    "attempts",
    [
        [lost(6, "ValueError: x", first_step=5), lost(7, "ValueError: x", first_step=6)],
        [lost(6, "ValueError: x"), lost(7, "ValueError: x", first_step=1)],
        [lost(7, "ValueError: x"), lost(7, "ValueError: y")],
        [lost(7, "ValueError: x"), lost(7)],
        [lost(7), lost(7)],
        [
            lost(7, "ValueError: x", first_step=6),
            lost(8, first_step=7),
            lost(9, "ValueError: x", first_step=7),
        ],
        [lost(7, "ValueError: x"), ended("stopped", step=9, cause="resized"), lost(9)],
    ],
)
def test_another_error_or_the_same_after_progress_may_be_an_accident(attempts: list[Attempt]):
    assert goes_on(attempts)


def outage(*, began: float, updated: float, first_step: int | None = None) -> Attempt:
    return Attempt(
        number=1, began=began, updated=updated, ending="lost", cause="OSError(5)", step=7,
        first_step=first_step, is_outage=True,
    )  # fmt: skip


def test_outages_are_limited_by_time_and_not_by_attempts():
    trained = outage(began=0, updated=100, first_step=3)
    after = [outage(began=100 + 10 * i, updated=110 + 10 * i) for i in range(60)]

    for i in range(1, 60):
        waited = after[i - 1].updated - trained.updated
        if waited < 500:
            assert decide_by([trained, *after[:i]], patience_s=500) == OUTAGE_DELAY_S
    with pytest.raises(TrainingError, match="61 attempts in a row were lost"):
        decide_by([trained, *after], patience_s=500)


def test_input_refused_after_training_may_be_an_outage():
    trained, now = lost(7, first_step=0), ended("refused", cause="no such file")

    with pytest.raises(InputError):
        decide_by([now], patience_s=500)
    assert decide_by([trained, now], patience_s=500) == OUTAGE_DELAY_S
    with pytest.raises(InputError, match="no such file"):
        decide_by([trained, replace(now, updated=501)], patience_s=500)


def test_a_stop_resets_the_count_of_losses():
    stopped = ended("stopped", step=7, cause="preempted")

    assert decide([lost(5), stopped, lost(8)]) == 0
