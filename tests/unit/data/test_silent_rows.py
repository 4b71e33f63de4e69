"""Rows that were once trained on as something else, and nobody was told."""

import json
from typing import Any

import pytest

from rm_ray.config.train_config import DataConfig
from rm_ray.data.cache.cache_rows import parse_pair_row, tokenize_rows
from rm_ray.data.rows.columns import NO_RULES, ColumnRules
from rm_ray.data.rows.contract import Pair, Reason, RefusedError, is_same
from rm_ray.data.rows.pairs import parse_pair, read_pair
from rm_ray.data.rows.reading import RowReading, sum_up
from rm_ray.data.tokens.tokenization import PairTokenizer, load_tokenizer

Row = dict[str, Any]

ASKED = {"role": "user", "content": "Why is it so?"}
SO = {"role": "assistant", "content": "So it is."}
NO = {"role": "assistant", "content": "It is not."}
TEXTS = {"chosen": "So it is.", "rejected": "It is not."}
PAIR = Pair(chosen=[ASKED, SO], rejected=[ASKED, NO])


WITH_TOOLS = (
    "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
)


def tokenize(*rows: Row) -> tuple[PairTokenizer, list[Row]]:
    tokenizer = PairTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def reading_of(row: Row, rules: ColumnRules = NO_RULES) -> RowReading:
    return read_pair(row, "here", rules)[1]


def refusal(row: Row) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        parse_pair(row)
    return refused.value


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED, SO], **TEXTS},
        {"prompt": [ASKED, NO], **TEXTS},
        {"prompt": [ASKED, SO], "chosen": [SO], "rejected": [NO]},
        {"prompt": [ASKED, SO], "chosen": [ASKED, SO], "rejected": [ASKED, NO]},
        {"history": [ASKED], "prompt": ASKED["content"], **TEXTS},
    ],
)
def test_what_stands_in_two_columns_is_said_once(row: Row):
    assert parse_pair(row) == PAIR


def test_a_prompt_that_ends_with_another_answer_is_refused():
    other = {"role": "assistant", "content": "Perhaps."}
    refused = refusal({"prompt": [ASKED, other], **TEXTS})
    assert refused.reason == Reason.PROMPTS_DIFFER
    assert "neither response" in refused.detail


@pytest.mark.parametrize(
    "text",
    [
        "### Human: why?### Assistant: ",
        "Below is an instruction.\n\n### Instruction:\nWhy?\n\n### Response:\n",
        "A chat. USER: why? ASSISTANT: ",
        "GPT4 Correct User: why?\n\nGPT4 Correct Assistant: ",
        "user: why?\nassistant: ",
        "**User**: why?\n\n**Assistant**: ",
        "H: why?\n\nA: ",
        "Question: why?\n\nAnswer: ",
    ],
)
def test_a_transcript_without_a_known_form_is_no_response(text: str):
    refused = refusal({"chosen": f"{text}so.", "rejected": f"{text}no."})
    assert refused.reason in (Reason.SPEAKER_TAG, Reason.TEMPLATED)
    kept = parse_pair({"prompt": "q", "chosen": f"{text}so.", "rejected": f"{text[3:]}no."})
    assert kept.prompt[0]["content"] == "q"


def test_a_transcript_from_windows_is_read_as_any():
    row = {
        side: f"\r\n\r\nHuman: {ASKED['content']}\r\n\r\nAssistant: {text}"
        for side, text in TEXTS.items()
    }
    assert parse_pair(row) == PAIR


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "['Why?']", "chosen": "['So.']", "rejected": "['No.']"},
        {"system": "a", "prompt": "['Why?']", "chosen": "['So.']", "rejected": "['No.']"},
    ],
)
def test_the_text_of_a_list_is_refused(row: Row):
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
def test_turns_that_go_on_from_a_prompt_follow_it(row: Row):
    pair = parse_pair(row)
    asked = [m for m in pair.prompt if m["role"] != "system"]
    assert asked == [ASKED, SO, FOLLOW_UP[0]]


def test_a_transcript_may_end_within_the_answer():
    row = {"prompt": "\n\nHuman: Q\n\nAssistant: Sure,", "chosen": " x", "rejected": " y"}
    assert parse_pair(row).chosen[-1]["content"] == "Sure, x"


def test_a_conversation_with_another_answer_than_its_prompt_is_refused():
    perhaps = {"role": "assistant", "content": "Perhaps."}
    row = {"prompt": [ASKED, perhaps], "chosen": [ASKED, SO], "rejected": [ASKED, NO]}
    assert refusal(row).reason == Reason.PROMPTS_DIFFER


def test_labels_in_a_long_text_are_found_at_once():
    text = "user: x " * 20_000 + "H:" + "\n" * 50_000
    assert parse_pair({"chosen": f"{text}a", "rejected": f"{text}b"}).prompt == []


def test_one_response_that_goes_on_after_the_other_is_kept():
    row = {"chosen": "So.\nQuestion: why?\nAnswer: so.", "rejected": "So."}
    assert parse_pair(row).prompt == []


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({"source": "Hello there, world", **TEXTS}, "source"),
        ({"data": {"text": "What is up there?"}, **TEXTS}, "data"),
        ({"turn_texts": ["What is up there?"], **TEXTS}, "turn_texts"),
        ({"translation": {"de": "Guten Tag"}, **TEXTS}, "translation"),
        ({"prompt": "q", "chosen_reasoning": "a b", **TEXTS}, "chosen_reasoning"),
        ({"prompt": "q", "rejected_messages": "a b", **TEXTS}, "rejected_messages"),
    ],
)
def test_what_may_be_said_stops_the_run(row: Row, lost: str):
    assert reading_of(row).lost == (lost,)


def test_a_source_is_a_name_where_it_is_mapped_short_or_somebody_asks():
    several = {"source": "Hello there, world", **TEXTS}
    assert reading_of(several, ColumnRules(columns={"source": "source"})).lost == ()
    assert parse_pair({"source": "forum", **TEXTS}).source == "forum"
    assert parse_pair({**several, "prompt": "q"}).source == "Hello there, world"


def test_rows_without_a_prompt_are_told():
    rows = [TEXTS, TEXTS, {"prompt": "q", **TEXTS}]
    counts: dict[str, int] = {}
    for row in rows:
        text = reading_of(row).to_json()
        counts[text] = counts.get(text, 0) + 1
    assert "NO PROMPT in 2 rows" in sum_up("here", counts).describe()
    assert "NO PROMPT" not in sum_up("here", {reading_of(rows[2]).to_json(): 1}).describe()


def test_true_is_not_1():
    def call(value: Any) -> Row:
        function = {"name": "f", "arguments": {"x": value}}
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}

    assert not is_same(call(True), call(1))
    assert is_same(call(1), {**call(1), "id": "7"})


def test_values_nested_too_deeply_are_refused():
    text = json.dumps({"prompt": "q", **TEXTS})[:-1] + f', "x": {"[" * 900}{"]" * 900}}}'
    refused, _ = parse_pair_row(text, "here", NO_RULES)
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.NOT_MESSAGES


def test_missing_numbers_of_pandas_are_missing():
    assert parse_pair({"system": float("nan"), "prompt": ASKED["content"], **TEXTS}) == PAIR


def test_each_row_is_written_with_its_own_tools():
    tools = [[{"name": "find", "default": value}] for value in (1, True)]
    rows = [{"prompt": "q", "tools": each, **TEXTS} for each in tools]
    tokenizer, tokenized = tokenize(*rows)
    texts = [tokenizer.tokenizer.decode(row["chosen_ids"]) for row in tokenized]
    assert ["true" in text for text in texts] == [False, True]


HALF = "half an emoji \ud83d"
CALL = {"type": "function", "function": {"name": "find", "arguments": {"x": HALF}}}


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [{"name": "find", "description": HALF}]},
        {"documents": [HALF]},
        {"chosen": [{"role": "assistant", "tool_calls": [CALL]}]},
    ],
)
def test_half_a_character_anywhere_refuses_the_row_alone(row: Row):
    whole = {"prompt": "q", "tools": [{"name": "find"}], **TEXTS}
    _, (refused, kept) = tokenize({**whole, **row}, whole)
    assert refused["reason"] == str(Reason.NOT_UNICODE)
    assert kept["reason"] == ""


def test_images_of_a_message_that_the_template_leaves_out_refuse_the_row():
    asked = {**ASKED, "images": ["a.png"]}
    _, (refused,) = tokenize({"chosen": [asked, SO], "rejected": [asked, NO]})
    assert refused["reason"] == str(Reason.LEFT_OUT)
    assert "'images' of turn 1" in refused["detail"]
