"""Checking, comparing and joining the messages of conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rm_ray.data.rows.refusals import Reason, RefusedError

Message = dict[str, Any]
"""``role``, ``content`` (text; optional with ``tool_calls``), and any other keys of the row."""

_ABOUT_A_MESSAGE = frozenset(
    ("id", "message_id", "uuid", "uid", "parent_id", "created_at", "create_time", "timestamp",
     "date", "time", "model", "score", "rating", "rank", "annotations", "metadata")
)  # fmt: skip
"""Keys of a message that are metadata, not content."""

_TEXT_ALONE = {"role", "content"}

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def check_turns(messages: list[Message], side: str) -> None:
    """Refuse an empty turn, a lone surrogate, or a last turn that is not the assistant's.

    Raises:
        RefusedError: names the ``side``.
    """
    if messages[-1]["role"] != "assistant":
        role = messages[-1]["role"]
        raise RefusedError(Reason.LAST_TURN_NOT_ASSISTANT, f"{side} ends with {role!r}")
    for message in messages:
        content, role = message.get("content", ""), message["role"]
        if not content or content.isspace():
            if role in ("user", "assistant") and not message.get("tool_calls"):
                raise RefusedError(Reason.EMPTY, f"a turn of the {role} in {side}")
        elif len(message) == 2 and content.isascii() and role.isascii():
            continue
        if any(map(has_lone_surrogate, texts_of(message))):
            raise RefusedError(Reason.NOT_UNICODE, f"half a surrogate pair in {side}")


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text has a lone surrogate, which neither files nor tokenizers accept."""
    return not text.isascii() and _LONE_SURROGATE.search(text) is not None


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in a value, except keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts_of(item)


def without_notes(message: Message) -> Message:
    """Return a message without its metadata, for comparison."""
    if len(message) == 2:
        return message
    return {key: value for key, value in message.items() if key not in _ABOUT_A_MESSAGE}


def is_same(left: Message, right: Message) -> bool:
    """Return whether two messages are equal apart from metadata; ``true`` does not equal 1."""
    left, right = without_notes(left), without_notes(right)
    if left != right or left.keys() == _TEXT_ALONE:
        return left == right
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def agree(left: list[Message], right: list[Message]) -> bool:
    """Return whether two lists of messages are equal apart from metadata."""
    return left == right or [*map(without_notes, left)] == [*map(without_notes, right)]


INSTRUCTIONS = ("system", "developer")
"""Roles of the turns that may precede a conversation."""


def join_turns(prompt: list[Message], messages: list[Message], name: str) -> list[Message]:
    """Prepend a prompt to the messages that answer it, unless they already begin with it.

    Raises:
        RefusedError: the messages are a whole conversation with another prompt.
    """
    if not prompt or not messages:
        return messages
    if len(messages) > len(prompt) and all(map(are_equivalent, prompt, messages)):
        return messages
    heads, asked = split_instructions(prompt)
    own_heads, turns = split_instructions(messages)
    if not own_heads and turns and turns[0]["role"] != "user":
        return prompt + messages
    if not own_heads and asked and asked[-1]["role"] == "assistant":
        return prompt + messages
    if not _contains_in_order(asked, turns[:-1]):
        raise RefusedError(Reason.PROMPTS_DIFFER, f"{name} is a conversation with another prompt")
    if heads and own_heads and not _contains_in_order(heads, own_heads):
        raise RefusedError(Reason.PROMPTS_DIFFER, f"{name} begins with another system turn")
    return messages if own_heads else heads + messages


def split_instructions(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """Split a conversation into its leading instructions and its turns."""
    start = next((i for i, m in enumerate(messages) if m["role"] not in INSTRUCTIONS), None)
    start = len(messages) if start is None else start
    return messages[:start], messages[start:]


def _contains_in_order(part: list[Message], whole: list[Message]) -> bool:
    """Return whether ``whole`` contains all messages of ``part`` in the same order."""
    left = iter(whole)
    return all(any(are_equivalent(message, other) for other in left) for message in part)


def are_equivalent(left: Message, right: Message) -> bool:
    """Return whether two messages have the same role, words and tool calls."""
    return (
        left["role"] == right["role"]
        and collapse_spaces(left.get("content", "")) == collapse_spaces(right.get("content", ""))
        and left.get("tool_calls") == right.get("tool_calls")
    )


def collapse_spaces(text: str) -> str:
    """Return a text with each run of whitespace as one space, and none at the ends."""
    return " ".join(text.split())


def asks_something(conversation: list[Message]) -> bool:
    """Return whether any turn precedes the response, not counting instructions."""
    last = len(conversation) - 1
    for i, message in enumerate(conversation):
        if message["role"] not in INSTRUCTIONS:
            return i < last
    return False
