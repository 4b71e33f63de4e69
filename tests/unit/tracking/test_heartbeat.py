import pytest

from rm_ray.tracking.channel import Channel
from rm_ray.tracking.heartbeat import RESIZED, more_pressing


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
def test_the_first_reason_to_stop_counts_and_any_before_a_resize(reason, other, expected):
    assert more_pressing(reason, other) == expected


def test_a_board_that_asked_for_a_resize_passes_a_signal_on():
    channel = Channel()
    channel.ask_to_stop(RESIZED)
    channel.ask_to_stop("terminated")
    channel.ask_to_stop(RESIZED)
    assert channel._reason_to_stop == "terminated"
