import json

import pytest
from hypothesis import strategies as st
from pair_rows import (
    ASKED,
    CALL,
    NO,
    QUESTION,
    ROLES,
    SHAREGPT,
    SO,
    TEXT_OF,
    assistant,
    from_human,
    refusal,
    turn,
    whole,
)

from rm_ray.data.rows.messages import read_value
from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.rows.refusals import Reason, RefusedError


def test_every_role_is_accepted():
    prompt = [turn(role, "text") for role in ROLES] + [QUESTION]
    row = {"chosen": [*prompt, assistant("So.")], "rejected": [*prompt, assistant("No.")]}

    assert {message["role"] for message in parse_pair(row).chosen} == set(ROLES)


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


def test_tool_calls_of_every_form_are_kept_whole():
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


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "tool_use"])
def test_a_part_that_is_not_text_is_refused_by_its_type(kind: str):
    parts = [{"type": "text", "text": "Look:"}, {"type": kind, kind: "a"}]

    found = refusal(whole({"role": "user", "content": parts}))

    assert found.reason == Reason.NOT_TEXT
    assert f"'{kind}'" in found.detail


leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.text("abcdef ", max_size=24)

turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": leaves},
        optional={"name": leaves, "reasoning_content": leaves, "weight": leaves},
    ),
    max_size=3,
)


def test_the_json_text_of_a_list_of_conversations_is_no_text():
    text = json.dumps([[assistant("So.")], [assistant("No.")]])

    with pytest.raises(RefusedError, match="JSON text of a list of conversations") as caught:
        read_value(text, "chosen")
    assert caught.value.reason == Reason.NOT_MESSAGES
