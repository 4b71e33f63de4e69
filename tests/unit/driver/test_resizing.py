from rm_ray.cluster.timeouts import LOOKS
from rm_ray.driver.resizing import Resizing


def due(*num_fitting: int) -> list[bool]:
    """Return the looks in which a run of 2 workers stops to grow."""
    resizing = Resizing(2)
    return [resizing.is_due(number) for number in num_fitting]


def test_a_run_stops_once_several_looks_in_a_row_find_room_for_more_workers():
    assert due(*[3] * (LOOKS + 2)) == [False] * (LOOKS - 1) + [True, False, False]


def test_room_that_disappears_resets_the_count():
    assert not any(due(3, 3, 2, 3, 3, 0, 3, 3))


def test_equal_or_less_room_is_no_reason_to_stop():
    assert not any(due(*[2] * 9))
    assert not any(due(*[1] * 9))
