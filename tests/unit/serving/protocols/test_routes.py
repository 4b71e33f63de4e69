"""Every route, with anything that JSON can hold."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenized_groups import BUILTIN

from rm_ray.errors import InputError
from rm_ray.serving.protocols.routes import ROUTES
from rm_ray.serving.question import Rewards
from rm_ray.serving.tokens import ConversationTokens

TOKENS = ConversationTokens.of(BUILTIN, 64)

TEXT = "<|user|>\nWhy?\n<|assistant|>\nSo."

MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]

BODIES: dict[str, tuple[dict[str, Any], ...]] = {
    "/get_reward": ({"query": [TEXT, TEXT], "prompts": ["a", "a"], "labels": [None, None]},),
    "/classify": (
        {"input": TEXT, "activation": False},
        {"input": [[9, 5], [7]]},
        {"messages": MESSAGES, "tools": None},
        {"text": [TEXT], "model": "m"},
        {"text": None, "input_ids": None, "input": TEXT},
        {"input_ids": [9, 5]},
    ),
    "/pooling": ({"input": [TEXT], "task": None}, {"messages": MESSAGES}),
    "/v1/embeddings": ({"input": TEXT, "encoding_format": "base64"},),
    "/v1/score/evaluation": ({"messages": [TEXT], "max_length": 30},),
    "/reward": ({"prompt": TEXT, "response": ".", "label": ""},
                {"prompt": MESSAGES[:1], "response": ""}),
    "/v1/rewards": (
        {"prompt": "Why?", "responses": ["So.", "", MESSAGES[1]]},
        {"messages": MESSAGES[:1], "responses": [MESSAGES[1:]]},
    ),
}  # fmt: skip
"""What clients send."""

CASES = [(path, body) for path, bodies in BODIES.items() for body in bodies]

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "assistant", "function", "text", "\ud800", TEXT])
)

keys = st.text(max_size=4) | st.sampled_from(
    ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type",
     "text", "input", "messages", "prompt", "response", "responses", "tools", "query"]
)  # fmt: skip

values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def ask(path: str, body: Any) -> Any:
    """Answer a body as the server does, with a reward of a conversation's length."""
    protocol = ROUTES[path]
    question = protocol.read(body)
    lengths = tuple(map(len, TOKENS.encode_all(question)))
    rewards = Rewards(rewards=tuple(map(float, lengths)), num_tokens=lengths, model="m")
    return protocol.answer(question, rewards)


def test_every_route_is_tried():
    assert ROUTES.keys() == BODIES.keys()


@pytest.mark.parametrize(("path", "body"), CASES)
def test_what_clients_send_is_answered_with_json(path: str, body: dict[str, Any]):
    found = ask(path, body)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("path", ROUTES)
@given(body=values)
def test_no_body_ends_in_anything_but_an_answer_or_an_input_error(path: str, body: Any):
    _answer_or_refuse(path, body)


@pytest.mark.parametrize(("path", "body"), CASES)
@settings(max_examples=50)
@given(data=st.data())
def test_nor_does_what_clients_send_with_one_value_exchanged(
    path: str, body: dict[str, Any], data: st.DataObject
):
    _answer_or_refuse(path, _exchange(body, data))


def _exchange(value: Any, data: st.DataObject) -> Any:
    """Return a value with another one somewhere in it."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: _exchange(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        i = data.draw(st.integers(0, len(value) - 1))
        return [*value[:i], _exchange(value[i], data), *value[i + 1 :]]
    return data.draw(values)


def _answer_or_refuse(path: str, body: Any) -> None:
    try:
        found = ask(path, body)
    except InputError as error:
        said = str(error)
        assert said
        assert "\n" not in said or "\n" in json.dumps(body)
        said.encode()
    else:
        json.dumps(found, allow_nan=False)


def test_clients_of_classify_are_told_apart_by_their_bodies():
    assert ask("/classify", {"text": [TEXT]})[0]["embedding"] == [
        ask("/classify", {"input": TEXT})["data"][0]["probs"][0]
    ]
    with pytest.raises(InputError, match="needs 'input' or 'messages'"):
        ask("/classify", {"model": "m"})
    with pytest.raises(InputError, match="does not know the field 'input'"):
        ask("/classify", {"text": TEXT, "input": TEXT})
