from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.preferences.scores import read_scores, take_scores
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.refusals import Reason, RefusedError

WEIGHTS = {"helpful": 2.0, "verbose": -1.0}


@pytest.mark.parametrize(
    ("value", "weights", "scores"),
    [
        ([4, 2.5], {}, [4.0, 2.5]),
        ("[4, 2.5]", {}, [4.0, 2.5]),
        ([4, 2.5], WEIGHTS, [4.0, 2.5]),
        ([{"helpful": 4, "verbose": 1}, {"verbose": 3, "helpful": 0}], {}, [2.5, 1.5]),
        ({"helpful": [4, 0], "verbose": [1, 3]}, {}, [2.5, 1.5]),
        ([{"helpful": 4, "verbose": 1}, {"verbose": 3, "helpful": 0}], WEIGHTS, [7.0, -3.0]),
        ({"helpful": [4, 0], "verbose": [1, 3], "other": ["a", "b"]}, WEIGHTS, [7.0, -3.0]),
    ],
)
def test_scores_are_numbers_or_the_mean_or_weighted_sum_of_attributes(
    value: Any, weights: dict[str, float], scores: list[float]
):
    assert read_scores(value, 2, weights) == scores


@pytest.mark.parametrize("value", [3, [3], {"a": 2, "b": 4}, [{"a": 2, "b": 4}], {"a": [2, 4]}])
def test_the_score_of_one_response_needs_no_list(value: Any):
    if value == {"a": [2, 4]}:
        with pytest.raises(RefusedError, match=r"scores\.a has 2 values for 1 responses"):
            read_scores(value, 1, {})
    else:
        assert read_scores(value, 1, {}) == [3.0]


@pytest.mark.parametrize(
    ("value", "weights", "detail"),
    [
        (3, {}, "scores is a int, not a list as long as the responses"),
        ("good", {}, "scores is a str"),
        ([1], {}, "scores has 1 values for 2 responses"),
        ([1, float("nan")], {}, "scores.1 is not a number (NaN)"),
        ([1, None], {}, "scores.1 is null; leave out a response without one"),
        (["1", 2], {}, "scores.0 is '1', a number written as text"),
        ([True, 2], {}, "scores.0 is true"),
        ([1, {"a": 2}], {}, "scores.0 has no attributes, and another response has some"),
        ([{}, {"a": 2}], {}, "scores.0 has no attributes"),
        ([{"a": 1}, {"a": "2"}], {}, "scores.1.a is '2', a number written as text"),
        ([{"a": 1}, {"a": 2, "b": 1}], {}, "responses 0 and 1 have other attributes (b)"),
        ({"a": [1]}, {}, "scores.a has 1 values for 2 responses"),
        ([{"helpful": 1}, {"helpful": 2}], WEIGHTS, "scores.0 has no verbose, which data.score_w"),
        ([{"a": 1e6}, {"a": 0}], {"a": 1e3}, "the weighted scores.0 is 1000000000"),
    ],
)
def test_other_scores_are_refused_with_what_is_wrong(
    value: Any, weights: dict[str, float], detail: str
):
    with pytest.raises(RefusedError) as caught:
        read_scores(value, 2, weights)

    assert caught.value.reason == Reason.BAD_SCORES
    assert detail in caught.value.detail


def test_columns_named_like_weighted_attributes_are_scores():
    row = {"response": "So.", "helpful": 4, "verbose": 1, "other": 9}
    rules = ColumnRules(score_weights=(("helpful", 2.0), ("verbose", -1.0)))
    columns = RowColumns(row, rules)

    assert take_scores(columns, 1, rules) == [7.0]
    assert columns.used == {"scores": "helpful' and 'verbose"}
    assert [name for name, _ in columns.left()] == ["response", "other"]
    assert take_scores(RowColumns(row), 1, ColumnRules()) is None


def test_a_weighted_attribute_without_its_column_is_refused():
    rules = ColumnRules(score_weights=(("helpful", 2.0), ("verbose", -1.0)))

    with pytest.raises(RefusedError, match=r"scores\.0 has no verbose"):
        take_scores(RowColumns({"response": "So.", "helpful": 4}, rules), 1, rules)


@pytest.mark.parametrize("plain", [{"score": 9.0}, {"scores": [9.0]}])
def test_weighted_columns_win_over_plain_numbers_and_not_over_attributes(plain: dict[str, Any]):
    rules = ColumnRules(score_weights=(("helpful", 2.0), ("verbose", -1.0)))
    row = {"response": "So.", "helpful": 4, "verbose": 1}
    columns = RowColumns({**row, **plain}, rules)

    assert take_scores(columns, 1, rules) == [7.0]
    assert columns.used == {"scores": "helpful' and 'verbose"}
    assert next(iter(plain)) in [name for name, _ in columns.left()]
    assert take_scores(RowColumns({"response": "So.", **plain}, rules), 1, rules) == [9.0]
    inside = {**row, "scores": {"helpful": 0, "verbose": 1}}
    assert take_scores(RowColumns(inside, rules), 1, rules) == [-1.0]


def test_mapped_plain_numbers_beside_weighted_columns_are_refused():
    rules = ColumnRules(columns={"scores": "overall"}, score_weights=(("helpful", 2.0),))

    with pytest.raises(RefusedError, match="from 'overall', and data\\.score_weights"):
        take_scores(RowColumns({"response": "So.", "helpful": 4, "overall": 9}, rules), 1, rules)


attribute_scores = st.lists(
    st.fixed_dictionaries({"a": st.integers(-9, 9), "b": st.integers(-9, 9)}), min_size=1
)


@given(attribute_scores)
def test_a_list_of_mappings_and_a_mapping_of_lists_are_the_same_scores(scores: list[Any]):
    by_attribute = {name: [score[name] for score in scores] for name in ("a", "b")}

    assert read_scores(by_attribute, len(scores), {}) == read_scores(scores, len(scores), {})
