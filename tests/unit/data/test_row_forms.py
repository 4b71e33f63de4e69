"""What a row becomes: the kinds that public preference files have, and that nothing vanishes."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_ray.config.train_config import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.rows.columns import ColumnRules, find_standing, is_blank
from rm_ray.data.rows.contract import Message, Pair, Reason, RefusedError
from rm_ray.data.rows.pairs import parse_pair, read_pair
from rm_ray.data.rows.reading import (
    describe_all,
    refuse_lost_columns,
    refuse_missing_columns,
    sum_up,
)
from rm_ray.data.tokens.tokenization import PairTokenizer, TokenizedPair, load_tokenizer
from rm_ray.errors import InputError
from rm_ray.scoring.conversations import parse_conversations

Row = dict[str, Any]

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Why is it so?"}
SO = {"role": "assistant", "content": "So."}
NO = {"role": "assistant", "content": "No."}
REPLIES = {"chosen": "So.", "rejected": "No."}
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"town": "Ulm"}}}
WITH_CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def whole(*prompt: Message) -> Row:
    return {"chosen": [*prompt, SO], "rejected": [*prompt, NO]}


def refusal(row: Row) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse_pair(row)
    return caught.value


def lost(row: Row, rules: ColumnRules | None = None) -> tuple[str, ...]:
    return read_pair(row, "", rules or ColumnRules())[1].lost


def from_human(text: str) -> Message:
    return {"from": "human", "value": text}


SHAREGPT = {"chosen": {"from": "gpt", "value": "So."}, "rejected": {"from": "gpt", "value": "No."}}
HISTORY = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TEXT_OF = json.dumps

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


def test_replies_of_several_turns_follow_the_prompt():
    steps = [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "18 C"}]

    for prompt in ("Why is it so?", [ASKED]):
        row = {"prompt": prompt, "chosen": [*steps, SO], "rejected": [*steps, NO]}
        assert parse_pair(row).chosen == [ASKED, *steps, SO]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What?", **whole(ASKED)},
        {"prompt": [{"role": "user", "content": "What?"}], **whole(ASKED)},
        {"system": "Be long.", **whole(SYSTEM, ASKED)},
        {"messages": [ASKED, {"role": "assistant", "content": "A third."}], **REPLIES},
    ],
)
def test_a_prompt_that_the_conversations_do_not_have_is_refused(row: Row):
    assert refusal(row).reason == Reason.PROMPTS_DIFFER


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (str([ASKED, SO]), Reason.NOT_MESSAGES),
        (f"array([{ASKED}, {SO}], dtype=object)", Reason.NOT_MESSAGES),
        (TEXT_OF([ASKED, SO])[:-3], Reason.NOT_MESSAGES),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSo.", Reason.TEMPLATED),
        ("[INST] Hi [/INST] So.", Reason.TEMPLATED),
        ("USER: Hi\nASSISTANT: So.", Reason.SPEAKER_TAG),
        ("### Human: Hi\n### Assistant: So.", Reason.SPEAKER_TAG),
    ],
)
def test_text_that_only_looks_like_a_conversation_is_refused(text: str, reason: Reason):
    assert refusal({"chosen": text, "rejected": "No."}).reason == reason


@pytest.mark.parametrize("text", ["[1, 2]", '[{"role": "admin"}]', '{"from": 1, "value": 2}', '"'])
def test_other_json_is_a_reply(text: str):
    assert parse_pair({"prompt": "Give JSON.", "chosen": text, "rejected": "No."}).chosen[-1] == {
        "role": "assistant",
        "content": text,
    }


def test_calls_are_kept_whole_whatever_form_they_have():
    as_text = {"id": "c1", "function": {"name": "look_up", "arguments": '{"town": "Ulm"}'}}
    flat = {"name": "look_up", "arguments": {"town": "Ulm", "street": None}}
    for calls in ([as_text], [flat], TEXT_OF([CALL])):
        message = {"role": "assistant", "content": None, "tool_calls": calls, "name": None}
        pair = parse_pair({"prompt": [ASKED], "chosen": message, "rejected": NO})
        (call,) = pair.chosen[-1]["tool_calls"]
        assert call["function"] == CALL["function"]
        assert "content" not in pair.chosen[-1]
    called = {"from": "function_call", "value": '{"name": "look_up", "arguments": {"town": "Ulm"}}'}
    turns = [from_human("Why is it so?"), called, {"from": "observation", "value": "18 C"}]
    pair = parse_pair({"conversations": turns, "tools": TEXT_OF([flat]), **SHAREGPT})
    assert [m["role"] for m in pair.chosen] == ["user", "assistant", "tool", "assistant"]
    assert pair.chosen[1]["tool_calls"] == [CALL]
    assert pair.context.tools == [{"type": "function", "function": {
        "name": "look_up", "arguments": {"town": "Ulm"}}}]  # fmt: skip


def test_replies_that_differ_in_calls_or_reasoning_alone_are_different():
    other = {**CALL, "function": {"name": "look_up", "arguments": {"town": "Rome"}}}
    calls = [{"role": "assistant", "content": None, "tool_calls": [c]} for c in (CALL, other)]
    thoughts = [{**SO, "reasoning_content": text} for text in ("One.", "Two.")]

    for chosen, rejected in (calls, thoughts):
        pair = parse_pair({"prompt": [ASKED], "chosen": [chosen], "rejected": [rejected]})
        assert pair.chosen != pair.rejected


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "tool_use"])
def test_a_part_that_is_not_text_is_refused_by_its_type(kind: str):
    parts = [{"type": "text", "text": "Look:"}, {"type": kind, kind: "a"}]

    found = refusal(whole({"role": "user", "content": parts}))

    assert found.reason == Reason.NOT_TEXT
    assert f"'{kind}'" in found.detail


PARTS = [
    "context", "Context", "images", "image", "audio", "videos", "documents_text", "passage",
    "chat_history", "systemPrompt2_prompt", "available_tools", "few_shot", "user_question",
]  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_column_of_the_conversation_that_is_not_used_stops_the_run(name: str):
    row = {"prompt": "Why?", **REPLIES, name: "The sky is blue."}
    reading = sum_up("here", {read_pair(row)[1].to_json(): 1})

    with pytest.raises(InputError) as caught:
        refuse_lost_columns([reading])

    for part in ("here", name, "data.columns", f"data.ignore_columns {name}"):
        assert part in str(caught.value)
    assert lost(row, ColumnRules(ignore=(name,))) == ()
    assert lost({**row, name: None}) == lost({**row, name: []}) == lost({**row, name: " "}) == ()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why is it so?", "context": "so?", **REPLIES},
        {"prompt": "Why is it so?", "messages": [ASKED, SO], **REPLIES},
        {"prompt": "Why is it so?", "conversation": [{"input": "Why is it so?", "output": "So."}],
         **REPLIES},
        {"prompt": "Why is it so?", "response": "No matter.", "id": 3, "score_chosen": 4.5,
         "labelling_prompt": "Rate:", "generations": ["a"], "prompt_id": "p",
         "language": "English", "chosen_model": "m", "images": []} | REPLIES,
    ],
)  # fmt: skip
def test_columns_that_add_nothing_do_not_stop_it(row: Row):
    assert lost(row) == ()


def test_a_line_says_what_each_column_became():
    rows = [
        {"id": 1, "question": "Why?", "system": "Be brief.", "score": 3.0, **REPLIES},
        {"id": 2, "question": "What?", "system": "", "zebra": "?", **REPLIES},
    ]
    counts: dict[str, int] = {}
    for row in rows:
        text = read_pair(row)[1].to_json()
        counts[text] = counts.get(text, 0) + 1

    (line,) = describe_all([sum_up("a.jsonl", counts)])

    assert line.startswith("a.jsonl: chosen from 'chosen', prompt from 'question', ")
    assert "system from 'system' (1 of 2 rows)" in line
    assert "not used: 'id', 'score' (1 of 2 rows); " in line
    assert line.endswith("rm_ray does not know what they hold: 'zebra' (1 of 2 rows)")


def test_columns_are_mapped_by_name_and_by_path():
    rules = ColumnRules.of(
        ["prompt=question.full_text", "chosen=completions.0.text", "rejected=completions.1.text",
         "margin=m.n", "system=rules"],
        [],
    )  # fmt: skip
    row = {
        "question": {"full_text": "Why is it so?", "id": 7},
        "completions": [{"text": "So."}, {"text": "No."}, {"text": "Neither."}],
        "m.n": 0.5,
        "rules": "Be brief.",
    }

    pair, reading = read_pair(row, "", rules)

    assert (pair.chosen, pair.rejected) == ([SYSTEM, ASKED, SO], [SYSTEM, ASKED, NO])
    assert pair.margin == 0.5
    assert reading.left == ("question.id", "completions.2")
    assert parse_conversations(row, "", rules).messages == [pair.chosen, pair.rejected]
    missing = {"prompt": "nowhere"}
    with pytest.raises(
        InputError, match=r"data\.columns reads prompt from 'nowhere', which no row"
    ):
        refuse_missing_columns(missing, [sum_up("a", {reading.to_json(): 1})])


def test_scoring_reads_the_prompt_as_training_does():
    row = {"system": "Be brief.", "question": "Why is it so?"}

    assert parse_conversations({**row, "response": "So."}).messages == [[SYSTEM, ASKED, SO]]
    assert parse_conversations({**row, "responses": ["So.", "No."]}).messages[1] == [
        SYSTEM,
        ASKED,
        NO,
    ]
    assert (
        parse_conversations({**row, **REPLIES}).messages[0] == parse_pair({**row, **REPLIES}).chosen
    )
    assert parse_conversations({**row, "response": "So.", "images": ["a.png"]}).reading.lost == (
        "images",
    )


def test_what_people_call_their_columns_is_known():
    for name in (
        "prompt_id",
        "num_tokens",
        "score_chosen",
        "chosen-rating",
        "judge_prompt",
        "lang",
    ):
        assert find_standing(name) == "harmless", name
    for name in ("tools", "Images", "userQuestion", "retrieved_documents", "system_prompt"):
        assert find_standing(name) == "part", name


leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text("abcdef ", max_size=24)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("kv"), inner, max_size=2),
    max_leaves=4,
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": leaves},
        optional={"name": leaves, "reasoning_content": leaves, "weight": leaves},
    ),
    max_size=3,
)
names = st.sampled_from(
    ["prompt", "question", "system", "messages", "history", "input", "instruction", "tools",
     "documents", "context", "images", "id", "zebra", "source", "margin", "conversations"]
)  # fmt: skip
BUILTIN = PairTokenizer(load_tokenizer("builtin"), DataConfig())


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


@settings(max_examples=150)
@given(st.dictionaries(names, values | turns, max_size=4), values | turns, values | turns)
def test_every_value_is_in_the_text_in_the_report_or_in_the_quarantine(
    row: Row, chosen: Any, rejected: Any
):
    row = {**row, "chosen": chosen, "rejected": rejected}
    (cached,) = tokenize_rows(BUILTIN, [json.dumps(row)], ["here"])
    if cached["reason"]:
        assert json.loads(cached["raw"]) == row
        return
    used, left, _, unwritten, _ = json.loads(cached["reading"])
    decode = BUILTIN.tokenizer.decode
    said = decode(cached["chosen_ids"]) + decode(cached["rejected_ids"])
    squeezed = "".join(said.split())
    columns = {name for names in used.values() for name in names.split("' and '")}
    for name, value in row.items():
        if is_blank(value) or name in left:
            continue
        assert name in columns
        if name in ("source", "margin"):
            continue
        for message in value if isinstance(value, list) else [value]:
            kept = message
            if isinstance(message, dict):
                kept = [v for k, v in message.items() if k not in ("role", *unwritten)]
            assert all("".join(text.split()) in squeezed for text in texts_in(kept))


def test_tools_and_calls_are_in_the_text_or_the_row_is_refused():
    tools = [{"type": "function", "function": {"name": "look_up", "description": "Look it up"}}]
    row = {"tools": tools, "prompt": [ASKED], "rejected": NO,
           "chosen": {"role": "assistant", "content": None, "tool_calls": [CALL]}}  # fmt: skip
    pair = parse_pair(row)
    knows = PairTokenizer(load_tokenizer("builtin", chat_template=WITH_CALLS), DataConfig())

    (tokens,) = knows.tokenize([pair])
    (refused,) = BUILTIN.tokenize([Pair(chosen=[ASKED, SO], rejected=[ASKED, NO],
                                        context=pair.context)])  # fmt: skip

    assert isinstance(tokens, TokenizedPair)
    text = knows.tokenizer.decode(tokens.chosen_ids)
    assert all(part in text for part in ("Look it up", '"look_up"', '"town": "Ulm"'))
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.LEFT_OUT


@pytest.mark.parametrize(
    ("template", "pair"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}|{% endfor %}",
         whole({"role": "system", "content": "a"}, ASKED)),
        ("{% for m in messages[-2:] %}{{ m.content }}|{% endfor %}", whole(SYSTEM, ASKED)),
        ("{% for m in messages %}{{ m.content[:20] }}|{% endfor %}",
         whole({"role": "user", "content": "x" * 19 + " and then some more"})),
    ],
)  # fmt: skip
def test_a_template_that_leaves_out_what_somebody_says_refuses_the_row(template: str, pair: Row):
    (found,) = PairTokenizer(
        load_tokenizer("builtin", chat_template=template), DataConfig()
    ).tokenize([parse_pair(pair)])

    assert isinstance(found, RefusedError)
    assert found.reason == Reason.LEFT_OUT


def test_keys_that_the_template_does_not_write_are_reported():
    chosen = {**SO, "name": "Ana", "weight": 1, "reasoning_content": "Because of this."}
    (tokens,) = BUILTIN.tokenize([parse_pair({"prompt": [ASKED], "chosen": [chosen],
                                              "rejected": [NO]})])  # fmt: skip

    assert isinstance(tokens, TokenizedPair)
    assert set(tokens.unwritten) == {"name", "weight", "reasoning_content"}


@pytest.mark.parametrize("joined", ["c.function.arguments", "c.function.arguments | tojson"])
def test_arguments_are_json_whether_the_template_writes_or_joins_them(joined: str):
    template = WITH_CALLS.replace("c.function | tojson", f"c.function.name + (' ' ~ ({joined}))")
    knows = PairTokenizer(load_tokenizer("builtin", chat_template=template), DataConfig())
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}

    (tokens,) = knows.tokenize([parse_pair({"prompt": [ASKED], "chosen": message, "rejected": NO})])

    assert isinstance(tokens, TokenizedPair)
    assert 'look_up {"town": "Ulm"}' in knows.tokenizer.decode(tokens.chosen_ids)


@pytest.mark.parametrize("name", ["train.jsonl.gz", "eval.jsonl"])
def test_real_conversations_are_those_of_the_plain_json(
    name: str, real_rows: Callable[[str], Iterator[Row]]
):
    by_source: dict[str, int] = {}
    for row in real_rows(name):
        pair, reading = read_pair(row)
        assert pair.chosen == [{k: m[k] for k in ("role", "content")} for m in row["chosen"]]
        assert pair.rejected == [{k: m[k] for k in ("role", "content")} for m in row["rejected"]]
        assert not reading.lost
        by_source[pair.source] = by_source.get(pair.source, 0) + 1

    assert len(by_source) > 1
