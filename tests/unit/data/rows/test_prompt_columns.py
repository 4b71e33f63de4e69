from typing import Any

import pytest
from pair_rows import (
    ASKED,
    HISTORY,
    NO,
    REPLIES,
    SHAREGPT,
    SO,
    SYSTEM,
    TEXT_OF,
    Row,
    from_human,
    whole,
)

from rm_ray.data.rows.pairs import parse_pair, read_pair

ONE_QUESTION: list[Row] = [
    {"question": "Why is it so?", **REPLIES},
    {"Question": "Why is it so?", **REPLIES},
    {"query": "Why is it so?", **REPLIES},
    {"instruction": "Why is it so?", "input": "", **REPLIES},
    {"input": "Why is it so?", "prompt": None, "system": "", **REPLIES},
    {"prompt": "Why is it so?", "messages": [ASKED], **REPLIES},
    {"prompt": [ASKED], **REPLIES},
    {"prompt": ASKED, "chosen": SO, "rejected": NO},
    {"prompt": TEXT_OF([ASKED]), "chosen": TEXT_OF([SO]), "rejected": TEXT_OF([NO])},
    {"messages": [ASKED], "chosen": SO, "rejected": NO},
    {"messages": [ASKED, SO], **whole(ASKED)},
    {"conversations": [from_human("Why is it so?")], **SHAREGPT},
    {"conversations": TEXT_OF([from_human("Why is it so?")]), **SHAREGPT},
    {"prompt": "Why is it so?", **whole(ASKED)},
    {"prompt": "Why is it so? ", **whole(ASKED)},
    {"prompt": "\n\nHuman: Why is it so?\n\nAssistant:", "chosen": " So.", "rejected": " No."},
    {"prompt": "\n\nHuman: Why is it so?", "chosen": "Assistant: So.", "rejected": "No."},
    {"prompt": "Why is it so?", "chosen": "Human: Why is it so?\n\nAssistant: So.",
     "rejected": "Human: Why is it so?\n\nAssistant: No."},
    {"prompt": [{"role": "user", "content": [{"type": "input_text", "text": "Why is it so?",
                                              "image_url": None}]}], **REPLIES},
    {"chosen": TEXT_OF(TEXT_OF([ASKED, SO])), "rejected": TEXT_OF([ASKED, NO])},
]  # fmt: skip


@pytest.mark.parametrize("row", ONE_QUESTION, ids=range(len(ONE_QUESTION)))
def test_one_question_in_every_form_is_the_same_pair(row: Row):
    pair, reading = read_pair(row)

    assert (pair.chosen, pair.rejected) == ([ASKED, SO], [ASKED, NO])
    assert reading.lost == ()


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be brief.", "question": "Why is it so?", **REPLIES},
        {"system_prompt": "Be brief.", "prompt": [ASKED], **REPLIES},
        {"system": "Be brief.", **whole(ASKED)},
        {"system": "Be brief.", **whole(SYSTEM, ASKED)},
        {"prompt": [ASKED], **whole(SYSTEM, ASKED)},
        {"prompt": [SYSTEM, ASKED], **whole(ASKED)},
        {"prompt": [SYSTEM], **whole(ASKED)},
        {"system": "Be brief.", "conversations": [from_human("Why is it so?")], **SHAREGPT},
    ],
)
def test_a_system_turn_comes_once_and_first(row: Row):
    assert parse_pair(row).chosen == [SYSTEM, ASKED, SO]


@pytest.mark.parametrize(
    "history",
    [[["Hi", "Hello"]], HISTORY, TEXT_OF([["Hi", "Hello"]]), TEXT_OF(HISTORY),
     "Human: Hi\n\nAssistant: Hello"],
)  # fmt: skip
def test_a_history_comes_before_the_prompt(history: Any):
    row = {"history": history, "instruction": "Why is it so?", **REPLIES}

    assert parse_pair(row).chosen == [*HISTORY, ASKED, SO]


def test_an_instruction_and_its_input_are_joined_by_a_line_break():
    pair, reading = read_pair({"instruction": "Add.", "input": "1 and 2", **REPLIES})

    assert pair.prompt == [{"role": "user", "content": "Add.\n1 and 2"}]
    assert reading.used["prompt"] == "instruction' and 'input"
