from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.data.preferences.comparisons import (
    compare_ranks,
    compare_scores,
    compare_sides,
    read_ranks,
    refuse_contradiction,
    take_preference,
)
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.groups import Comparison
from rm_ray.data.rows.refusals import Reason, RefusedError


def test_ranks_may_tie_skip_numbers_and_be_json_text():
    assert read_ranks([1, 3.0, 3], 3) == [1.0, 3.0, 3.0]
    assert read_ranks("[2, 1]", 2) == [2.0, 1.0]


@pytest.mark.parametrize(
    ("ranks", "detail"),
    [
        ([1], "ranks has 1 values for 2 responses"),
        ([1, 2, 3], "ranks has 3 values for 2 responses"),
        (1, "ranks is a int"),
        ([0, 1], "ranks.0 is 0; the best rank is 1"),
        ([1, None], "ranks.1 is null"),
        ([1, float("nan")], "ranks.1 is not a number (NaN)"),
        (["1", "2"], "ranks.0 is '1', a number written as text"),
        ([True, False], "ranks.0 is true, not a number"),
        ({"a": 1}, "ranks is a dict"),
    ],
)
def test_other_ranks_are_refused_with_what_is_wrong(ranks: Any, detail: str):
    with pytest.raises(RefusedError) as caught:
        read_ranks(ranks, 2)

    assert caught.value.reason == Reason.BAD_RANKS
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("row", "probability"),
    [
        ({}, 1.0),
        ({"tie": False}, 1.0),
        ({"tie": None, "preference": None}, 1.0),
        ({"tie": True}, 0.5),
        ({"preference": 0.5}, 0.5),
        ({"preference": 0.5, "tie": True}, 0.5),
        ({"preference": 0.7, "tie": False}, 0.7),
        ({"preference": 1}, 1.0),
        ({"preference": 1e-9}, 1e-9),
    ],
)
def test_the_chosen_side_wins_with_the_probability_of_the_row(
    row: dict[str, Any], probability: float
):
    assert take_preference(RowColumns(row)) == probability


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"preference": 1.01}, "preference is 1.01 and not from 0 to 1"),
        ({"preference": 0}, "preference is 0, so the sides should be written the other way round"),
        ({"preference": 0.0, "tie": False}, "preference is 0, so the sides should be"),
        ({"preference": -1}, "preference is -1 and not from 0 to 1"),
        ({"preference": "0.7"}, "preference is '0.7' and not a number"),
        ({"preference": True}, "preference is 'True' and not a number"),
        ({"preference": [1]}, "preference is '[1]' and not a number"),
        ({"tie": "yes"}, "tie is 'yes' and not true or false"),
        ({"tie": 1}, "tie is '1' and not true or false"),
        ({"tie": True, "preference": 0.7}, "preference is 0.7 and tie is true"),
        ({"tie": False, "preference": 0.5}, "preference is 0.5 and tie is false"),
    ],
)
def test_other_preferences_are_refused_with_what_is_wrong(row: dict[str, Any], detail: str):
    with pytest.raises(RefusedError) as caught:
        take_preference(RowColumns(row))

    assert caught.value.reason == Reason.BAD_PREFERENCE
    assert detail in caught.value.detail
    assert "data.ignore_columns" in caught.value.detail


def test_each_chosen_response_is_compared_with_each_rejected_one():
    found = compare_sides([0, 1], [2, 3], probability=1.0, margin=0.5)

    assert [(c.better, c.worse) for c in found] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert {(c.weight, c.margin, c.probability) for c in found} == {(1.0, 0.5, 1.0)}


def test_below_one_half_the_sides_are_swapped():
    assert compare_sides([0], [1], probability=0.25, margin=0.0) == [
        Comparison(better=1, worse=0, probability=0.75)
    ]


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_a_margin_of_a_side_that_does_not_win_is_refused(probability: float):
    with pytest.raises(RefusedError) as caught:
        compare_sides([0], [1], probability=probability, margin=1.5)

    assert caught.value.reason == Reason.BAD_MARGIN
    assert caught.value.detail.startswith("margin is 1.5, and chosen wins with a probability of")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_ranks_and_the_opposite_scores_compare_alike(ranks: list[int]):
    found = compare_ranks(ranks, 0.5)

    assert found == compare_scores([-rank for rank in ranks], 0.5)
    assert sorted(sorted((c.better, c.worse)) for c in found) == [
        [i, j] for i, j in combinations(range(len(ranks)), 2)
    ]
    for each in found:
        assert each.is_tie == (ranks[each.better] == ranks[each.worse])
        assert each.is_tie or (ranks[each.better] < ranks[each.worse] and each.margin == 0.5)
        assert not each.is_tie or (each.margin == 0.0 and each.better < each.worse)


def test_scores_that_differ_by_rounding_tie():
    assert [c.is_tie for c in compare_scores([0.1 + 0.2, 0.3], 0.0)] == [True]
    assert [c.is_tie for c in compare_scores([0.3001, 0.3], 0.0)] == [False]


def test_ranks_and_scores_must_not_disagree():
    refuse_contradiction([1, 2, 2], [5.0, 3.0, 1.0])
    refuse_contradiction([1, 2], [3.0, 3.0])
    with pytest.raises(RefusedError, match="ranks and scores disagree on the responses 0 and 2"):
        refuse_contradiction([1, 2, 3], [5.0, 3.0, 6.0])
