from typing import Any

import pytest
from pair_rows import (
    ASKED,
    CALL,
    QUESTION,
    REPLIES,
    SO,
    SYSTEM,
    Row,
    assistant,
    refusal,
    turn,
    whole,
)

from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.rows.refusals import Reason
from rm_ray.data.rows.turns import is_same


@pytest.mark.parametrize("role", ["system", "tool"])
def test_only_users_and_assistants_need_content(role: str):
    prompt = [turn(role, ""), QUESTION]
    row = {"chosen": [*prompt, assistant("So.")], "rejected": [*prompt, assistant("No.")]}

    assert parse_pair(row).prompt == prompt


def test_messages_keep_all_keys_and_are_compared_without_metadata():
    row = {
        "chosen": [{**QUESTION, "id": 3}, assistant("So.")],
        "rejected": [{**QUESTION, "id": 4}, {**assistant("No."), "name": "x"}],
    }

    pair = parse_pair(row)

    assert pair.chosen == [{**QUESTION, "id": 3}, assistant("So.")]
    assert pair.rejected == [{**QUESTION, "id": 3}, {**assistant("No."), "name": "x"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "What?", **whole(ASKED)},
        {"prompt": [{"role": "user", "content": "What?"}], **whole(ASKED)},
        {"system": "Be long.", **whole(SYSTEM, ASKED)},
        {"messages": [ASKED, {"role": "assistant", "content": "A third."}], **REPLIES},
    ],
)
def test_a_prompt_that_differs_from_the_conversations_is_refused(row: Row):
    assert refusal(row).reason == Reason.PROMPTS_DIFFER


def test_replies_that_differ_only_in_calls_or_reasoning_are_different():
    other = {**CALL, "function": {"name": "look_up", "arguments": {"town": "Rome"}}}
    calls = [{"role": "assistant", "content": None, "tool_calls": [c]} for c in (CALL, other)]
    thoughts = [{**SO, "reasoning_content": text} for text in ("One.", "Two.")]

    for chosen, rejected in (calls, thoughts):
        pair = parse_pair({"prompt": [ASKED], "chosen": [chosen], "rejected": [rejected]})
        assert pair.chosen != pair.rejected


def test_true_is_not_1():
    def call(value: Any) -> Row:
        function = {"name": "f", "arguments": {"x": value}}
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}

    assert not is_same(call(True), call(1))
    assert is_same(call(1), {**call(1), "id": "7"})
