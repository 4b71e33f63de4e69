"""Messages -> their text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rm_ray.data.rows.turns import INSTRUCTIONS, Message, texts_of


def read_text(message: Message) -> str:
    """Return the text of a message, without its role."""
    content = message.get("content")
    return content if isinstance(content, str) else " ".join(texts_of(content))


def read_all(message: Message) -> str:
    """Return the text of a message with that of its tool calls, without its role."""
    return " ".join([read_text(message), *map(_read_call, message.get("tool_calls") or ())])


def _read_call(call: Any) -> str:
    """Return what a tool call asks for, with its numbers and without its id."""
    if isinstance(call, dict):
        call = call.get("function") or {k: v for k, v in call.items() if k not in ("id", "type")}
    return json.dumps(call, sort_keys=True, ensure_ascii=False)


def leave_out_instructions(prompt: Sequence[Message]) -> list[Message]:
    """Return the turns of a prompt without system and developer ones."""
    return [message for message in prompt if message["role"] not in INSTRUCTIONS]
