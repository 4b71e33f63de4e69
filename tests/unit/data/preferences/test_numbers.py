from typing import Any

import pytest

from rm_ray.data.preferences.numbers import read_number, require_one_each, unwrap_json
from rm_ray.data.rows.refusals import Reason, RefusedError


@pytest.mark.parametrize("value", [0, -3, 2.5, 1_000_000])
def test_a_number_is_a_float(value: float):
    number = read_number(value, "scores.0", Reason.BAD_SCORES)

    assert number == value
    assert isinstance(number, float)


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (None, "scores.0 is null; leave out a response without one"),
        (True, "scores.0 is true, not a number"),
        ("4", "scores.0 is '4', a number written as text"),
        ("good", "scores.0 is 'good', a text and not a number"),
        ([4], "scores.0 is a list and not a number"),
        (float("nan"), "scores.0 is not a number (NaN)"),
        (float("inf"), "scores.0 is inf; its size is at most 1,000,000"),
        (-(10**400), "scores.0 is -1000"),
        (1_000_001, "scores.0 is 1000001; its size is at most 1,000,000"),
    ],
)
def test_anything_else_is_refused_with_what_it_is(value: Any, detail: str):
    with pytest.raises(RefusedError) as caught:
        read_number(value, "scores.0", Reason.BAD_SCORES)

    assert caught.value.reason == Reason.BAD_SCORES
    assert caught.value.detail.startswith(detail)


def test_a_list_or_object_may_be_json_text_and_other_text_stays():
    assert unwrap_json(" [1, 2]") == [1, 2]
    assert unwrap_json('{"a": 1}') == {"a": 1}
    assert unwrap_json("3") == "3"
    assert unwrap_json("[oops") == "[oops"
    assert unwrap_json([1]) == [1]


@pytest.mark.parametrize(
    ("values", "detail"),
    [([1], "ranks has 1 values for 2 responses"), (3, "ranks is a int, not a list as long as")],
)
def test_there_is_one_value_for_each_response(values: Any, detail: str):
    assert require_one_each([1, 2], 2, "ranks", Reason.BAD_RANKS) == [1, 2]
    with pytest.raises(RefusedError, match=detail):
        require_one_each(values, 2, "ranks", Reason.BAD_RANKS)
