import errno

import pytest
from ray.exceptions import RayTaskError

from rm_ray.errors import (
    InputError,
    LostError,
    StoppedError,
    TrainingError,
    find_final_error,
    find_lost_error,
    is_refusal,
)


def wrapped(error: Exception) -> Exception:
    """Return an error as Ray hands it to the driver, inside another one."""
    outer = RuntimeError("Ray Data failed")
    outer.__cause__ = RayTaskError("read", "Traceback ...", error).as_instanceof_cause()
    return outer


def test_a_stop_reports_its_step_and_the_step_of_its_checkpoint():
    stopped = StoppedError("terminated", 12, saved_step=10)

    assert str(stopped) == "terminated at step 12; its newest checkpoint is from step 10"
    assert (stopped.reason, stopped.step, stopped.saved_step) == ("terminated", 12, 10)


def test_a_stop_without_a_checkpoint_mentions_none():
    assert str(StoppedError("terminated", 12, None)) == "terminated at step 12"
    assert str(StoppedError("terminated", 12, 0)) == "terminated at step 12"


@pytest.mark.parametrize("kind", [InputError, TrainingError])
def test_our_error_is_found_inside_rays(kind):
    found = find_final_error(wrapped(kind("data.train is empty")))
    assert type(found) is kind
    assert str(found) == "data.train is empty"


def test_lines_that_ray_data_appends_to_a_message_are_dropped():
    assert str(find_final_error(InputError("row 3 is empty\nThis error occurred in ..."))) == (
        "row 3 is empty"
    )


def test_other_errors_contain_none_of_ours():
    assert find_final_error(wrapped(ValueError("ours?"))) is None
    assert find_final_error(None) is None
    assert find_lost_error(wrapped(TrainingError("final"))) is None


def test_a_lost_error_is_found_without_rays_wrapping():
    lost = LostError("the loss is not finite", skips=7)
    found = find_lost_error(wrapped(lost))
    assert found is not None
    assert (found.cause, found.skips, found.is_outage) == ("the loss is not finite", 7, False)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, True),
        (errno.EROFS, True),
        (errno.ENOTDIR, True),
        (errno.ENOENT, False),
        (errno.ENOSPC, False),
        (errno.EIO, False),
        (None, False),
    ],
)
def test_only_errors_that_a_retry_cannot_cure_are_refusals(number, expected):
    assert is_refusal(OSError() if number is None else OSError(number, "x")) is expected
