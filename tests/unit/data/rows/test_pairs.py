import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pair_rows import PAIR, QUESTION, ROLES, Row, assistant, turn, user

from rm_ray.data.rows.pairs import LARGEST_MARGIN, Pair, parse_pair, read_pair
from rm_ray.data.rows.refusals import Reason, RefusedError


def test_message_lists_that_include_the_prompt_are_taken_as_is():
    assert parse_pair({"chosen": PAIR.chosen, "rejected": PAIR.rejected}) == PAIR
    assert PAIR.prompt == [QUESTION]


def test_contents_are_kept_exactly():
    row = {"prompt": " Why? \n", "chosen": "\tSo. ", "rejected": "So."}

    pair = parse_pair(row)

    assert pair.chosen == [user(" Why? \n"), assistant("\tSo. ")]
    assert pair.rejected[-1] == assistant("So.")


def test_a_source_is_kept_or_else_the_default_is_used():
    row = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}

    assert parse_pair(row, "file.jsonl").source == "file.jsonl"
    assert parse_pair({**row, "source": "hh"}, "file.jsonl").source == "hh"
    for no_name in (None, "", 3, ["hh"]):
        assert parse_pair({**row, "source": no_name}, "file.jsonl").source == "file.jsonl"


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (None, 0.0),
        (float("nan"), 0.0),
        (0.25, 0.25),
        (-2, -2.0),
        (3, 3.0),
        (LARGEST_MARGIN, LARGEST_MARGIN),
    ],
)
def test_a_margin_is_a_number_and_zero_if_missing(margin: Any, expected: float):
    pair = parse_pair({"chosen": "So.", "rejected": "No.", "margin": margin})

    assert pair.margin == expected
    assert isinstance(pair.margin, float)


def test_swapping_a_pair_twice_gives_it_back():
    pair = parse_pair({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "source": "hh"})

    assert pair.swap().chosen == pair.rejected
    assert pair.swap().rejected == pair.chosen
    assert pair.swap().swap() == pair


def test_a_source_with_a_lone_surrogate_is_still_a_name():
    row = {"prompt": "q", "chosen": "So.", "rejected": "No.", "source": "half an emoji \ud83d"}

    assert parse_pair(row).source.encode().startswith(b"half an emoji ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from([*ROLES, "human"]), "content": json_values}),
    max_size=3,
)

fields = st.sampled_from(["prompt", "chosen", "rejected", "margin", "source", "other"])


@given(st.dictionaries(fields, json_values | messages))
def test_any_json_object_gives_a_pair_or_a_refusal(row: Row):
    try:
        pair = parse_pair(row)
    except RefusedError as refused:
        assert refused.reason in Reason
        return
    assert pair.chosen[:-1] == pair.rejected[:-1] == pair.prompt
    assert pair.chosen[-1]["role"] == pair.rejected[-1]["role"] == "assistant"
    assert pair.chosen != pair.rejected


words = st.text().filter(lambda text: text.strip())


@given(st.lists(st.tuples(st.sampled_from(ROLES), words), max_size=4), words, words)
def test_the_same_pair_in_every_form_is_the_same_pair(
    prompt_turns: list[tuple[str, str]], better: str, worse: str
):
    assume(better != worse)
    assume(not prompt_turns or prompt_turns[-1][0] != "assistant")  # which may be the answer
    prompt = [turn(role, content) for role, content in prompt_turns]
    pair = Pair(chosen=[*prompt, assistant(better)], rejected=[*prompt, assistant(worse)])
    forms: list[Row] = [
        {"chosen": pair.chosen, "rejected": pair.rejected},
        {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected},
        {"prompt": prompt, "chosen": better, "rejected": worse},
    ]
    if prompt:
        forms.append(
            {"prompt": prompt, "chosen": [assistant(better)], "rejected": [assistant(worse)]}
        )

    for row in forms:
        assert parse_pair(json.loads(json.dumps(row))) == pair


@pytest.mark.parametrize(("name", "count"), [("train.jsonl.gz", 4_421), ("eval.jsonl", None)])
def test_every_real_pair_is_accepted_unchanged(
    name: str, count: int | None, real_rows: Callable[[str], Iterator[Row]]
):
    rows = list(real_rows(name))

    for row in rows:
        pair, reading = read_pair(row)
        assert pair == Pair(chosen=row["chosen"], rejected=row["rejected"], source=row["source"])
        assert not reading.lost

    assert count in (None, len(rows))
    assert len({row["source"] for row in rows}) > 1
