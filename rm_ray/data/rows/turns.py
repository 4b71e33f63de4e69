"""The messages of a conversation: check them, compare them, join two lists of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rm_ray.data.rows.refusals import Reason, RefusedError

Message = dict[str, Any]
"""``role``, ``content`` (text; none beside ``tool_calls``) and whatever else a row gives it."""

_ABOUT_A_MESSAGE = frozenset(
    ("id", "message_id", "uuid", "uid", "parent_id", "created_at", "create_time", "timestamp",
     "date", "time", "model", "score", "rating", "rank", "annotations", "metadata")
)  # fmt: skip
"""Keys of a message that say something about it and are no part of it."""

_TEXT_ALONE = {"role", "content"}

_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def check_turns(messages: list[Message], side: str) -> None:
    """Refuse a conversation that does not end in the assistant's turn, or has an empty turn."""
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise RefusedError(Reason.LAST_TURN_NOT_ASSISTANT, f"{side} ends with {role!r}")
    for message in messages:
        content = message.get("content", "")
        if not content or content.isspace():
            speaks = message["role"] in ("user", "assistant")
            if speaks and not message.get("tool_calls"):
                raise RefusedError(Reason.EMPTY, f"a turn of the {message['role']} in {side}")
        if message.keys() == _TEXT_ALONE and content.isascii() and message["role"].isascii():
            continue
        if any(map(has_half_a_surrogate, texts_of(message))):
            raise RefusedError(Reason.NOT_UNICODE, f"half a surrogate pair in {side}")


def has_half_a_surrogate(text: str) -> bool:
    """Tell whether a text holds half a character, which no file and no tokenizer takes."""
    return not text.isascii() and _HALF_SURROGATE.search(text) is not None


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in a value, the names of keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def without_notes(message: Message) -> Message:
    """Return a message without what is only said about it, to compare it by."""
    if len(message) == 2:
        return message
    return {key: value for key, value in message.items() if key not in _ABOUT_A_MESSAGE}


def is_same(left: Message, right: Message) -> bool:
    """Tell whether two messages are one, but for their notes; ``true`` is not 1."""
    left, right = without_notes(left), without_notes(right)
    if left != right or left.keys() == _TEXT_ALONE:
        return left == right
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def agree(left: list[Message], right: list[Message]) -> bool:
    """Tell whether two lists hold the same messages."""
    return left == right or [*map(without_notes, left)] == [*map(without_notes, right)]


INSTRUCTIONS = ("system", "developer")
"""Roles of turns that stand before a conversation."""


def join_turns(prompt: list[Message], messages: list[Message], name: str) -> list[Message]:
    """Put a prompt before messages that answer it; a conversation that begins with it stays whole.

    Raises:
        RefusedError: it is a whole conversation with another prompt.
    """
    if not prompt or not messages:
        return messages
    if len(messages) > len(prompt) and all(map(say_the_same, prompt, messages)):
        return messages
    heads, asked = split_instructions(prompt)
    own_heads, turns = split_instructions(messages)
    if not own_heads and turns and turns[0]["role"] != "user":
        return prompt + messages
    if not own_heads and asked and asked[-1]["role"] == "assistant":
        return prompt + messages
    if not _comes_in(asked, turns[:-1]):
        raise RefusedError(Reason.PROMPTS_DIFFER, f"{name} is a conversation with another prompt")
    if heads and own_heads and not _comes_in(heads, own_heads):
        raise RefusedError(Reason.PROMPTS_DIFFER, f"{name} begins with another system turn")
    return messages if own_heads else heads + messages


def split_instructions(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Return the instructions before a conversation, and its turns."""
    start = next((i for i, m in enumerate(messages) if m["role"] not in INSTRUCTIONS), None)
    start = len(messages) if start is None else start
    return messages[:start], messages[start:]


def _comes_in(part: list[Message], whole: list[Message]) -> bool:
    """Tell whether all messages of one list are in the other one, in the same order."""
    left = iter(whole)
    return all(any(say_the_same(message, other) for other in left) for message in part)


def say_the_same(left: Message, right: Message) -> bool:
    """Tell whether two messages have one role, the same words and the same tool calls."""
    return (
        left["role"] == right["role"]
        and collapse_spaces(left.get("content", "")) == collapse_spaces(right.get("content", ""))
        and left.get("tool_calls") == right.get("tool_calls")
    )


def collapse_spaces(text: str) -> str:
    """Return a text with a single space wherever it has white space, and none at its ends."""
    return " ".join(text.split())


def asks_something(conversation: list[Message]) -> bool:
    """Tell whether somebody says something before the response."""
    return any(message["role"] not in INSTRUCTIONS for message in conversation[:-1])
