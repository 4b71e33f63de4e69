from typing import Any

import pytest
from pair_rows import ASKED, NO, SO

from rm_ray.data.preferences.response_lists import (
    is_list_of_responses,
    read_responses,
    split_list,
    split_side,
)
from rm_ray.data.rows.prompts import Prompt
from rm_ray.data.rows.refusals import Reason, RefusedError

ASKS = Prompt(turns=[ASKED])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("So.", False),
        ([], False),
        (SO, False),
        ([ASKED, SO], False),
        (["So."], True),
        ([[SO], [NO]], True),
        ([None, "So."], True),
    ],
)
def test_a_list_of_messages_is_one_response(value: Any, expected: bool):
    assert is_list_of_responses(value) is expected


def test_every_response_of_a_list_has_a_name_and_a_single_one_that_of_its_side():
    assert split_side("So.", ASKS, "chosen") == (["So."], ["chosen"])
    assert split_side([ASKED, SO], ASKS, "chosen") == ([[ASKED, SO]], ["chosen"])
    assert split_side(["a", "b"], ASKS, "chosen") == (["a", "b"], ["chosen.0", "chosen.1"])
    assert split_side([[SO], [NO]], ASKS, "chosen")[0] == [[SO], [NO]]
    assert split_list([SO, NO], ASKS, "responses")[0] == [SO, NO]


def test_as_many_texts_as_questions_are_the_turns_of_one_response():
    two = Prompt(questions=["Hi", "Why?"])

    assert split_side(["Hello", "So."], two, "chosen") == ([["Hello", "So."]], ["chosen"])
    assert split_side([["Hello", "a"], ["Hello", "b"]], two, "chosen")[0] == [
        ["Hello", "a"],
        ["Hello", "b"],
    ]
    assert split_side(["a", "b"], Prompt(questions=["Why?"]), "chosen")[0] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("value", "prompt", "reason", "detail"),
    [
        (["a", None], ASKS, Reason.EMPTY, "chosen.1 is null"),
        (["a", [SO]], ASKS, Reason.NOT_MESSAGES, "chosen is a list of several kinds: list, str"),
        (["a", 3], ASKS, Reason.NOT_MESSAGES, "several kinds: int, str"),
        (["Hi", "Hello"], Prompt(), Reason.NOT_MESSAGES, "2 texts in a row without a prompt"),
        (["a", "b"], Prompt(system="Be brief."), Reason.NOT_MESSAGES, "may be the turns"),
        ([{"text": "a"}], ASKS, Reason.NOT_MESSAGES, "chosen.0 is an object with text; write"),
    ],
)
def test_a_list_that_could_be_misread_is_refused(
    value: Any, prompt: Prompt, reason: Reason, detail: str
):
    with pytest.raises(RefusedError) as caught:
        split_list(value, prompt, "chosen")

    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_transcripts_and_a_single_text_need_no_prompt():
    whole = ["Human: Why?\n\nAssistant: So.", "Human: Why?\n\nAssistant: No."]

    assert split_list(whole, Prompt(), "responses")[0] == whole
    assert split_list(["So."], Prompt(), "responses")[0] == ["So."]


@pytest.mark.parametrize(
    ("value", "reason"),
    [("So.", Reason.NOT_MESSAGES), ({"a": 1}, Reason.NOT_MESSAGES), ([], Reason.EMPTY)],
)
def test_responses_are_a_list_or_the_json_text_of_one(value: Any, reason: Reason):
    assert read_responses(["a"]) == read_responses('["a"]') == ["a"]
    with pytest.raises(RefusedError) as caught:
        read_responses(value)
    assert caught.value.reason == reason
