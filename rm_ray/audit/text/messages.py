"""Messages -> their text."""

from __future__ import annotations

from collections.abc import Sequence

from rm_ray.data.rows.turns import INSTRUCTIONS, Message, texts_of


def read_text(message: Message) -> str:
    """Return the text of a message, without its role."""
    content = message.get("content")
    return content if isinstance(content, str) else " ".join(texts_of(content))


def read_all(message: Message) -> str:
    """Return the text of a message with that of its tool calls, without its role."""
    calls = message.get("tool_calls")
    return " ".join([read_text(message), *texts_of(calls)]) if calls else read_text(message)


def leave_out_instructions(prompt: Sequence[Message]) -> list[Message]:
    """Return the turns of a prompt without system and developer ones."""
    return [message for message in prompt if message["role"] not in INSTRUCTIONS]
