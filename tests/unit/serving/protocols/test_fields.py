from typing import Any

import pytest

from rm_ray.errors import InputError
from rm_ray.serving.protocols.fields import (
    Fields,
    Fixed,
    read_choice,
    read_ids,
    read_inputs,
    read_limit,
    read_texts,
    shown,
    take_one,
)

FIELDS = Fields(
    route="POST /there",
    read=("input",),
    harmless=("user",),
    fixed={"dimensions": Fixed(values=(1,), advice="a reward is one number")},
)


def test_fields_to_read_are_returned_unless_null():
    assert FIELDS.check({"input": "a", "user": "me", "dimensions": 1}) == {"input": "a"}
    assert FIELDS.check({"input": None, "dimensions": None}) == {}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([1, 2], "the body of POST /there must be a JSON object with 'input', got a list of 2"),
        ("text", "must be a JSON object with 'input', got 'text'"),
        ({"input": "a", "top_k": 2}, "does not know the field 'top_k'"),
        ({"dimensions": 64}, "'dimensions' must be null or 1, got 64: a reward is one number"),
        ({"dimensions": True}, "'dimensions' must be null or 1, got True"),
        ({"dimensions": 1.0}, "'dimensions' must be null or 1, got 1.0"),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(body: Any, said: str):
    with pytest.raises(InputError) as caught:
        FIELDS.check(body)
    assert said in str(caught.value)


def test_of_several_inputs_there_is_exactly_one():
    assert take_one({"text": "a"}, ("text", "ids"), "POST /there") == "text"
    with pytest.raises(InputError, match=r"needs 'text' or 'ids', and only one of them; got none"):
        take_one({}, ("text", "ids"), "POST /there")
    with pytest.raises(InputError, match=r"got 'text' and 'ids'"):
        take_one({"text": "a", "ids": [1]}, ("text", "ids"), "POST /there")


def test_texts_and_ids_come_alone_or_in_lists():
    assert read_texts("a", "input") == ("a",)
    assert read_inputs("a", "input") == ("a",)
    assert read_inputs(["a", "b"], "input") == ("a", "b")
    assert read_inputs([1, 2], "input") == ((1, 2),)
    assert read_inputs([[1, 2], [3]], "input") == ((1, 2), (3,))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "'input' must be a text or a list of texts, got 3"),
        (["a", 3], "'input[1]' must be a text, got 3"),
        ([1, "a"], "'input[1]' must be a token id, got 'a'"),
        ([1, True], "'input[1]' must be a token id, got True"),
        ([1, -1], "'input[1]' must be a token id, got -1"),
        ([[1], []], "'input[1]' must be a text, a list"),
        ([[1], "a"], "'input[1]' must be a text, a list"),
        ([], "'input' must be a text, a list"),
        ([{}], "'input[0]' must be a token id, got an object with nothing"),
    ],
)
def test_other_inputs_are_refused_with_their_place(value: Any, said: str):
    with pytest.raises(InputError) as caught:
        read_inputs(value, "input")
    assert said in str(caught.value)


def test_lists_of_nothing_are_refused():
    with pytest.raises(InputError, match="'query' is an empty list"):
        read_texts([], "query")
    with pytest.raises(InputError, match="must be a text, a list of texts, a list of token ids"):
        read_ids([], "input")


def test_choices_and_limits():
    assert read_choice({}, "form", ("a", "b")) == "a"
    assert read_choice({"form": "b"}, "form", ("a", "b")) == "b"
    assert read_limit({}, "most") is None
    assert read_limit({"most": 4}, "most") == 4
    for value in (0, -1, True, "4", 1.5):
        with pytest.raises(InputError, match="'most' must be a positive number of tokens"):
            read_limit({"most": value}, "most")
    for value in ("c", ["a"], 1):
        with pytest.raises(InputError, match="'form' must be 'a' or 'b', got"):
            read_choice({"form": value}, "form", ("a", "b"))


def test_shown_values_are_short_and_can_be_sent():
    assert shown("x" * 200) == "'" + "x" * 79 + "..."
    assert shown({"a": 1}) == "an object with 'a'"
    assert shown("\ud800").encode() == b"'\\ud800'"
