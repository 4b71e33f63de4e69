"""A value of a row -> text, or messages from any of the usual storage formats."""

from __future__ import annotations

import json
import re
from typing import Any

from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.transcripts import is_templated
from rm_ray.data.rows.turns import Message
from rm_ray.data.rows.values import drop_nulls, is_blank, load_json
from rm_ray.data.sources.raw_json import foreign_type

SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
}
"""ShareGPT's names of speakers (``from``); any other name is a role."""

_CALLERS = ("function_call", "tool_call")
"""ShareGPT's names of an assistant calling tools; ``value`` holds the call as JSON."""

_USUAL_ROLES = frozenset(("system", "user", "assistant", "tool"))

_USUAL_KEYS = ("messages", "content", "text", "value", "full_text")

_TEXT_PARTS = (None, "text", "input_text", "output_text")


def read_value(value: Any, name: str) -> str | list[Message]:
    """Return a value as text or as messages, also from text that holds messages as JSON.

    Raises:
        RefusedError: it is neither, or looks like messages but cannot be read as such.
    """
    if isinstance(value, str):
        embedded = find_embedded(value, name)
        if embedded is None:
            if is_templated(value):
                raise RefusedError(Reason.TEMPLATED, f"{name}: {value.strip()[:80]!r}")
            return value
        value = embedded
    if isinstance(value, dict) and ({"role", "from"} & value.keys()):
        value = [value]
    if kind := foreign_type(value):
        raise RefusedError(Reason.NOT_TEXT, f"{name} is a value of type {kind}")
    if isinstance(value, dict) and value:
        inside = f"{name}.{next((k for k in value if k in _USUAL_KEYS), next(iter(value)))}"
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"{name} is an object with {', '.join(value)}; say what to read of it with "
            f"data.columns, as in {name}={inside}",
        )
    if not isinstance(value, list):
        raise RefusedError(Reason.NOT_MESSAGES, f"{name} is a {type(value).__name__}")
    return [_message(message, name) for message in value]


_ROLE_KEY = re.compile(r"""\\*["'](?:role|from)\\*["']\s*:""")

_CONTENT_KEY = re.compile(r"""\\*["'](?:content|value|tool_calls)\\*["']\s*:""")

_LIST_OF_MESSAGES = re.compile(
    r"""["']?\s*(?:\w+\()?[\[(\s]*(?:\w+\()?\s*\{\s*\\*["']\w+\\*["']\s*:"""
)


def find_embedded(text: str, name: str) -> list[Any] | None:
    """Return the messages that a text encodes as JSON, once or twice; None for other text.

    Raises:
        RefusedError: it looks like a list of messages but is not JSON, such as Python's ``repr``.
    """
    stripped = text.strip()
    if stripped[:1] not in "[{(\"'a" or not (
        _ROLE_KEY.search(stripped) and _CONTENT_KEY.search(stripped)
    ):
        return None
    value: Any = stripped
    for _ in range(3):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, str):
            listed = value if isinstance(value, list) else [value]
            if isinstance(value, dict) and isinstance(value.get("messages"), list):
                raise RefusedError(
                    Reason.NOT_MESSAGES,
                    f"{name} is the JSON text of an object with messages; store the object itself "
                    f"(then {name}.messages can be named in data.columns), or its messages alone",
                )
            if any(map(_looks_like_conversation, listed)):
                raise RefusedError(
                    Reason.NOT_MESSAGES,
                    f"{name} is the JSON text of a list of conversations; store the list itself",
                )
            are_messages = bool(listed) and all(map(_looks_like_message, listed))
            return listed if are_messages else None
    if _LIST_OF_MESSAGES.match(stripped):
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"{name} looks like a list of messages and is not JSON (write it by json.dumps, not "
            f"by str): {stripped[:80]}",
        )
    return None


def _looks_like_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    contents = {"content", "value", "tool_calls"} & value.keys()
    return bool(contents) and isinstance(value.get("role", value.get("from")), str)


def _looks_like_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_looks_like_message, value))


def _message(value: Any, name: str) -> Message:
    """Return a message with its role, its content as text, and all its other keys."""
    if not isinstance(value, dict):
        hint = f"; it is a list of texts: take one with data.columns, as in {name}={name}.0"
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"{name} holds {str(value)[:80]!r}{hint if isinstance(value, str) else ''}",
        )
    role, content = value.get("role"), value.get("content")
    if len(value) == 2 and isinstance(content, str) and isinstance(role, str):
        _checked_role(role, name)
        return value
    message: Message = drop_nulls(value)
    if "role" not in message and "from" in message:
        message = _from_sharegpt(message, name)
    elif "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    role = _checked_role(message.pop("role", None), name)
    content = message.pop("content", None)
    _read_calls(message, name)
    text, others = _read_content(content, f"{name} holds {str(value)[:80]!r}", name)
    if text is None and not message.get("tool_calls"):
        raise RefusedError(
            Reason.NOT_MESSAGES,
            f"{name} holds {str(value)[:80]!r}, a message without 'content' (or 'value')",
        )
    said = {} if text is None else {"content": text}
    return {"role": role, **said, **message, **others}


def _checked_role(role: Any, name: str) -> str:
    """Return a role; refuse ShareGPT's speakers, but allow others, which a template may know."""
    if isinstance(role, str) and role in _USUAL_ROLES:
        return role
    if not isinstance(role, str) or not role.strip():
        raise RefusedError(Reason.UNKNOWN_ROLE, f"{role!r} in {name}")
    plain = role.strip().lower()
    if plain != role and plain in _USUAL_ROLES:
        raise RefusedError(Reason.UNKNOWN_ROLE, f"{role!r} in {name}; it is written '{plain}'")
    if SPEAKERS.get(plain) in ("user", "assistant"):
        raise RefusedError(Reason.UNKNOWN_ROLE, f"{role!r} in {name}")
    return role


def _from_sharegpt(message: Message, name: str) -> Message:
    """Read ``{"from": "human", "value": ...}``."""
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    speaker, value = message["from"], message.get("value", others.pop("content", None))
    if isinstance(speaker, str) and speaker.lower() in _CALLERS:
        calls = load_json(value) if isinstance(value, str) else value
        calls = [calls] if isinstance(calls, dict) else calls
        return {"role": "assistant", "tool_calls": calls, **others}
    role = SPEAKERS.get(speaker.lower(), speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": value, **others}


def _read_content(content: Any, shown: str, name: str) -> tuple[str | None, Message]:
    """Return content as text, with the other keys of its parts."""
    if isinstance(content, str):
        return content, {}
    if content is None or content == []:
        return None, {}
    if kind := foreign_type(content):
        raise RefusedError(Reason.NOT_TEXT, f"a content of type {kind} in {name}")
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    others: Message = {}
    for part in parts:
        if not isinstance(part, dict):
            raise RefusedError(Reason.NOT_MESSAGES, shown)
        text = part.get("text")
        if isinstance(text, dict) and isinstance(text.get("value"), str):
            text = text["value"]
        if part.get("type") not in _TEXT_PARTS:
            raise RefusedError(Reason.NOT_TEXT, f"a part of type {part.get('type')!r} in {name}")
        if not isinstance(text, str):
            kind = foreign_type(part) or foreign_type(text)
            if kind:
                raise RefusedError(Reason.NOT_TEXT, f"a part of type {kind} in {name}")
            raise RefusedError(Reason.NOT_MESSAGES, shown)
        texts.append(text)
        beside = {k: v for k, v in part.items() if k not in ("type", "text") and not is_blank(v)}
        others |= {f"content.{key}": value for key, value in beside.items()}
    return "".join(texts), others


def _read_calls(message: Message, name: str) -> None:
    """Convert tool calls to OpenAI's form, with arguments as an object."""
    if "function_call" in message and not message.get("tool_calls"):
        message["tool_calls"] = [message.pop("function_call")]
    if "tool_calls" not in message:
        return
    calls = message["tool_calls"]
    calls = load_json(calls) if isinstance(calls, str) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise RefusedError(Reason.NOT_MESSAGES, f"tool_calls in {name}: {str(calls)[:80]}")
    if calls:
        message["tool_calls"] = [_call(call, name) for call in calls]
    else:
        del message["tool_calls"]


def _call(call: dict[str, Any], name: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict):
        beside: dict[str, Any] = {key: call[key] for key in ("id", "type") if key in call}
        inside = {key: value for key, value in call.items() if key not in beside}
        call, function = {**beside, "type": "function"}, inside
    if not isinstance(function.get("name"), str):
        raise RefusedError(Reason.NOT_MESSAGES, f"a tool call in {name} names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        loaded = load_json(arguments)
        function = {**function, "arguments": loaded if isinstance(loaded, dict) else arguments}
    return {**call, "function": function}
