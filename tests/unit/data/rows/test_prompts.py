import json
from typing import Any

import pytest
from pair_rows import (
    ANSWERED,
    ASKED,
    CALL,
    NO,
    PAIR,
    QUESTION,
    REPLIES,
    SO,
    SYSTEM,
    Row,
    assistant,
    refusal,
    user,
)

from rm_ray.data.rows.pairs import Pair, parse_pair
from rm_ray.data.rows.prompts import Prompt, answer_all
from rm_ray.data.rows.refusals import Reason, RefusedError


def test_a_prompt_of_messages_goes_before_responses_of_messages():
    row = {"prompt": [QUESTION], "chosen": PAIR.chosen[1:], "rejected": PAIR.rejected[1:]}

    assert parse_pair(row) == PAIR


def test_a_prompt_of_messages_goes_before_responses_that_are_strings():
    assert parse_pair({"prompt": [QUESTION], "chosen": "So.", "rejected": "No."}) == PAIR


def test_a_prompt_that_is_a_string_goes_before_responses_of_messages():
    row = {"prompt": "Why?", "chosen": PAIR.chosen[1:], "rejected": PAIR.rejected[1:]}

    assert parse_pair(row) == PAIR


def test_a_prompt_that_is_a_string_goes_before_responses_that_are_strings():
    assert parse_pair({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) == PAIR


@pytest.mark.parametrize("prompt", ["Why?", [QUESTION], None, []])
def test_a_prompt_that_the_messages_already_hold_is_not_repeated(prompt: Any):
    row = {"prompt": prompt, "chosen": PAIR.chosen, "rejected": PAIR.rejected}

    assert parse_pair(row) == PAIR


def test_strings_alone_are_responses_without_a_prompt():
    pair = parse_pair({"chosen": "So.", "rejected": "No."})

    assert pair == Pair(chosen=[assistant("So.")], rejected=[assistant("No.")])
    assert pair.prompt == []


def test_one_side_may_be_a_string_and_the_other_messages():
    row = {"prompt": "Why?", "chosen": "So.", "rejected": [assistant("No.")]}

    assert parse_pair(row) == PAIR


def test_a_response_after_a_prompt_is_never_read_as_a_transcript():
    row = {"prompt": "Write a scene.", "chosen": "Human: Hi", "rejected": "Assistant: Hi"}

    assert parse_pair(row).chosen == [user("Write a scene."), assistant("Human: Hi")]


def test_replies_of_several_turns_follow_the_prompt():
    steps = [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "18 C"}]

    for prompt in ("Why is it so?", [ASKED]):
        row = {"prompt": prompt, "chosen": [*steps, SO], "rejected": [*steps, NO]}
        assert parse_pair(row).chosen == [ASKED, *steps, SO]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED, SO], **REPLIES},
        {"prompt": [ASKED, NO], **REPLIES},
        {"prompt": [ASKED, SO], "chosen": [SO], "rejected": [NO]},
        {"prompt": [ASKED, SO], "chosen": [ASKED, SO], "rejected": [ASKED, NO]},
        {"history": [ASKED], "prompt": ASKED["content"], **REPLIES},
    ],
)
def test_turns_that_two_columns_repeat_occur_once(row: Row):
    assert parse_pair(row) == ANSWERED


def test_a_prompt_that_ends_with_another_answer_is_refused():
    other = {"role": "assistant", "content": "Perhaps."}
    refused = refusal({"prompt": [ASKED, other], **REPLIES})
    assert refused.reason == Reason.PROMPTS_DIFFER
    assert "neither response" in refused.detail


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "['Why?']", "chosen": "['So.']", "rejected": "['No.']"},
        {"system": "a", "prompt": "['Why?']", "chosen": "['So.']", "rejected": "['No.']"},
    ],
)
def test_a_list_written_as_text_is_refused(row: Row):
    assert refusal(row).reason == Reason.NOT_MESSAGES


@pytest.mark.parametrize("rejected", ["a and b", '["c"]'])
def test_a_list_that_answers_a_question_is_kept(rejected: str):
    row = {"prompt": "Name some as JSON.", "chosen": '["a"]', "rejected": rejected}
    assert parse_pair(row).chosen[-1]["content"] == '["a"]'


FOLLOW_UP = [{"role": "user", "content": "And why?"}, {"role": "assistant", "content": "So it is."}]

OTHER = [FOLLOW_UP[0], NO]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED, SO], "chosen": FOLLOW_UP, "rejected": OTHER},
        {"system": "Be brief.", "prompt": [ASKED, SO], "chosen": FOLLOW_UP, "rejected": OTHER},
        {"history": [[ASKED["content"], SO["content"]]], "chosen": FOLLOW_UP, "rejected": OTHER},
        {"prompt": [ASKED, SO], "chosen": [ASKED, SO, *FOLLOW_UP],
         "rejected": [{"role": "system", "content": "Be brief."}, ASKED, SO, *OTHER][1:]},
    ],
)  # fmt: skip
def test_turns_that_continue_a_prompt_follow_it(row: Row):
    pair = parse_pair(row)
    asked = [m for m in pair.prompt if m["role"] != "system"]
    assert asked == [ASKED, SO, FOLLOW_UP[0]]


def test_a_conversation_whose_answer_differs_from_the_prompt_s_is_refused():
    perhaps = {"role": "assistant", "content": "Perhaps."}
    row = {"prompt": [ASKED, perhaps], "chosen": [ASKED, SO], "rejected": [ASKED, NO]}
    assert refusal(row).reason == Reason.PROMPTS_DIFFER


NAMES = ("responses.0", "responses.1", "responses.2")


def test_all_responses_to_a_prompt_continue_it():
    prompt = Prompt(turns=[ASKED], system="Be brief.")

    assert answer_all(prompt, ["So.", [SO], [ASKED, NO]], NAMES) == [
        [SYSTEM, ASKED, SO],
        [SYSTEM, ASKED, SO],
        [SYSTEM, ASKED, NO],
    ]


@pytest.mark.parametrize(
    ("prompt", "values", "detail"),
    [
        (Prompt(turns=[ASKED]), ["So.", json.dumps([SO]), "No."], "and another one is plain text"),
        (Prompt(turns=[ASKED, NO]), ["a", "b", "c"], "turn that is none of the responses"),
        (
            Prompt(turns=[{"role": "user", "content": '["q"]'}]),
            ['["a"]', "['b']", '["c"]'],
            "lists of texts",
        ),
    ],
)
def test_responses_that_could_be_misread_are_refused_in_lists_too(
    prompt: Prompt, values: list[str], detail: str
):
    with pytest.raises(RefusedError) as caught:
        answer_all(prompt, values, NAMES)

    assert detail in caught.value.detail


def test_one_response_that_is_no_list_makes_the_others_texts():
    prompt = Prompt(turns=[{"role": "user", "content": '["q"]'}])

    found = answer_all(prompt, ['["a"]', "b", '["c"]'], NAMES)

    assert [messages[-1]["content"] for messages in found] == ['["a"]', "b", '["c"]']
