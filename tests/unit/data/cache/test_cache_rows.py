import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_rows import REPLIES, Row

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import parse_pair_row, tokenize_rows
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.values import is_blank
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer

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
def test_every_value_is_in_the_text_the_report_or_the_quarantine(
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


WITH_TOOLS = (
    "{{ tools | tojson }}{{ documents | tojson }}{% for m in messages %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% endfor %}"
)


def tokenize(*rows: Row) -> tuple[PairTokenizer, list[Row]]:
    tokenizer = PairTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def test_values_nested_too_deeply_are_refused():
    text = json.dumps({"prompt": "q", **REPLIES})[:-1] + f', "x": {"[" * 900}{"]" * 900}}}'
    refused, _ = parse_pair_row(text, "here", NO_RULES)
    assert isinstance(refused, RefusedError)
    assert refused.reason == Reason.NOT_MESSAGES


HALF = "half an emoji \ud83d"

HALF_CALL = {"type": "function", "function": {"name": "find", "arguments": {"x": HALF}}}


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [{"name": "find", "description": HALF}]},
        {"documents": [HALF]},
        {"chosen": [{"role": "assistant", "tool_calls": [HALF_CALL]}]},
    ],
)
def test_a_lone_surrogate_refuses_only_its_row(row: Row):
    whole = {"prompt": "q", "tools": [{"name": "find"}], **REPLIES}
    _, (refused, kept) = tokenize({**whole, **row}, whole)
    assert refused["reason"] == str(Reason.NOT_UNICODE)
    assert kept["reason"] == ""
