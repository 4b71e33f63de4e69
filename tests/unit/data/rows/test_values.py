import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_rows import ANSWERED, ASKED, REPLIES

from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.rows.values import drop_nulls, is_blank, load_json, load_list


@pytest.mark.parametrize("blank", [None, "", " \n", [], {}, [None, ""], {"a": [{}]}, float("nan")])
def test_values_without_content_are_blank(blank: Any):
    assert is_blank(blank)


@pytest.mark.parametrize("value", [0, False, 0.0, "a", [0], {"a": None, "b": "c"}])
def test_numbers_and_booleans_are_not_blank(value: Any):
    assert not is_blank(value)


def test_nulls_are_removed_only_from_objects():
    assert drop_nulls({"a": None, "b": [None, {"c": None, "d": 0}]}) == {"b": [None, {"d": 0}]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=6,
    )
)
def test_json_text_round_trips(value: Any):
    assert load_json(json.dumps(value)) == value
    assert load_list(json.dumps(value)) == (value if isinstance(value, list) else None)


@pytest.mark.parametrize("text", ["plain", "[1, 2", "{'a': 1}", "[" * 100_000])
def test_text_that_is_not_json_stays_text(text: str):
    assert load_json(text) == text
    assert load_list(text) is None


def test_pandas_nan_counts_as_missing():
    assert parse_pair({"system": float("nan"), "prompt": ASKED["content"], **REPLIES}) == ANSWERED
