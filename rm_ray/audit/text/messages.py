"""Messages -> their text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rm_ray.data.rows.turns import INSTRUCTIONS, Message, texts_of


def read_text(message: Message) -> str:
    """Return the text of a message, without its role."""
    content = message.get("content")
    return content if isinstance(content, str) else " ".join(texts_of(content))


def read_all(message: Message) -> str:
    """Return the text of a message with that of its tool calls, without its role.

    Of a tool call that is the name of its function and the values of its arguments.
    """
    calls = message.get("tool_calls") or ()
    asked = (part for call in calls for part in _values(call["function"]))  # without its id
    return " ".join([read_text(message), *asked])


def _values(value: Any) -> Iterator[str]:
    """Yield each value in the order of its keys: texts as they are, all else as JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _values(value[key])
    elif isinstance(value, list):
        for each in value:
            yield from _values(each)
    else:
        yield json.dumps(value)


def leave_out_instructions(prompt: Sequence[Message]) -> list[Message]:
    """Return the turns of a prompt without system and developer ones."""
    return [message for message in prompt if message["role"] not in INSTRUCTIONS]
