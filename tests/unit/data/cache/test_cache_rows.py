import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_rows import REPLIES, Row
from tokenized_groups import group_of

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache import cache_rows
from rm_ray.data.cache.cache_rows import tokenize_block, tokenize_rows
from rm_ray.data.cache.group_columns import PER_COMPARISON
from rm_ray.data.preferences.group_reading import parse_row
from rm_ray.data.rows.groups import Comparison, Group
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.row_readings import RowReading
from rm_ray.data.rows.values import is_blank
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
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

BUILTIN = GroupTokenizer(load_tokenizer("builtin"), DataConfig())


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
    said = "".join(map(decode, cached["ids"]))
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


def tokenize(*rows: Row) -> tuple[GroupTokenizer, list[Row]]:
    tokenizer = GroupTokenizer(load_tokenizer("builtin", chat_template=WITH_TOOLS), DataConfig())
    return tokenizer, tokenize_rows(tokenizer, [*map(json.dumps, rows)], ["here"] * len(rows))


def test_values_nested_too_deeply_are_refused():
    text = json.dumps({"prompt": "q", **REPLIES})[:-1] + f', "x": {"[" * 900}{"]" * 900}}}'
    refused, _ = parse_row(text, "here", NO_RULES)
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


def stored(group: Group) -> Row:
    """Return the cache row of a group that a row was read as."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_rows, "parse_row", lambda *_: (group, RowReading(used={})))
        (row,) = tokenize_rows(BUILTIN, ["{}"], ["here"])
    return row


def test_a_pair_is_stored_as_one_comparison_of_its_two_responses():
    pair = {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "margin": 0.5, "source": "x"}
    (row,) = tokenize_rows(BUILTIN, [json.dumps(pair)], ["here"])

    assert (row["reason"], row["source"]) == ("", "x")
    assert [BUILTIN.tokenizer.decode(ids) for ids in row["ids"]] == [
        f"<|user|>\nWhy?\n<|assistant|>\n{response}<|end|>" for response in ("So.", "No.")
    ]
    assert {name: row[name] for name in PER_COMPARISON} == {
        "better": [0], "worse": [1], "weight": [1.0], "margin": [0.5], "probability": [1.0]
    }  # fmt: skip
    assert [*map(math.isnan, row["score"])] == [True, True]
    assert len(row["response_hashes"]) == 2


def test_the_comparisons_of_a_list_weigh_1_together():
    group = replace(
        group_of("Why?", "So.", "No.", "Who knows?"),
        comparisons=(
            Comparison(better=2, worse=0, weight=3.0, margin=0.25),
            Comparison(better=0, worse=1, probability=0.5),
        ),
        scores=(1.0, math.nan, 2.0),
    )

    row = stored(group)

    assert row["reason"] == ""
    assert {name: row[name] for name in PER_COMPARISON} == {
        "better": [2, 0],
        "worse": [0, 1],
        "weight": [0.75, 0.25],
        "margin": [0.25, 0.0],
        "probability": [1.0, 0.5],
    }
    assert [score for score in row["score"] if not math.isnan(score)] == [1.0, 2.0]
    assert math.isnan(row["score"][1])
    assert len(row["ids"]) == len(row["response_hashes"]) == 3


def test_a_single_response_with_a_score_is_stored_without_comparisons():
    row = stored(replace(group_of("Why?", "So."), scores=(3.5,)))

    assert row["reason"] == ""
    assert row["score"] == (3.5,)
    assert row["better"] == row["worse"] == row["weight"] == []


def test_a_group_without_labels_is_refused_with_its_text():
    row = stored(group_of("Why?", "So.", "No."))

    assert (row["reason"], row["raw"]) == (str(Reason.NOTHING_TO_LEARN), "{}")


@pytest.mark.parametrize("most", [1, 150, 10**9])
def test_a_block_of_long_rows_is_tokenised_in_parts_that_make_the_same_table(monkeypatch, most):
    pairs = [
        json.dumps({"prompt": "a" * size, "chosen": "yes", "rejected": "no"})
        for size in range(1, 21)
    ]
    texts = [*pairs[:7], "[]", *pairs[7:]]
    batch = {
        "fragment": np.arange(21, dtype=np.int32) % 2,
        "row": np.arange(21, dtype=np.int64),
        "json": np.array(texts, dtype=object),
    }
    whole = tokenize_block(batch, BUILTIN, ["a", "b"])
    monkeypatch.setattr(cache_rows, "MOST_CHARACTERS", most)
    table = tokenize_block(batch, BUILTIN, ["a", "b"])

    assert table.schema == whole.schema
    assert repr(table.to_pylist()) == repr(whole.to_pylist())  # missing scores are NaN
    assert whole.column("row").to_pylist() == list(range(21))
    assert [bool(reason) for reason in whole.column("reason").to_pylist()].index(True) == 7
    nothing = {name: column[:0] for name, column in batch.items()}
    assert tokenize_block(nothing, BUILTIN, ["a", "b"]).num_rows == 0
