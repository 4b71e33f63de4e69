"""What a conversation's text lacks of what the row says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rm_ray.data.rows.context import Context
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import texts_of

SURE_LENGTH = 12
"""Characters from which on a text that stands in a conversation was written there."""


def is_sure(value: Any) -> bool:
    """Tell whether a value has texts, each too long to stand in a conversation by chance."""
    parts = list(texts_of(value))
    return bool(parts) and all(len(part) >= SURE_LENGTH for part in parts)


def refuse_lost_calls(calls: list[dict[str, Any]], text: str, turn: int) -> None:
    """Refuse a turn whose calls are not in the text: their names and arguments.

    Raises:
        RefusedError: naming what is not there.
    """
    for call in calls:
        function = call["function"]
        for part in (function["name"], *leaves_of(function.get("arguments"))):
            if not contains(text, part):
                raise RefusedError(
                    Reason.LEFT_OUT, f"a tool call in turn {turn + 1}: {part[:80]!r}"
                )


def find_lost_context(context: Context, text: str) -> Iterator[str]:
    """Yield which parts of tools and documents the text lacks; refuse where one is not there."""
    for tool in context.tools or ():
        name = tool.get("function", tool).get("name", "")
        if name and not contains(text, name):
            raise RefusedError(Reason.LEFT_OUT, f"the tool {name!r}")
        if not all(contains(text, part) for part in leaves_of(tool)):
            yield "parts of tools"
    for document in context.documents or ():
        parts = list(leaves_of(document))
        if parts and not any(contains(text, part) for part in parts if len(part) >= SURE_LENGTH):
            longest = max(parts, key=len)
            if not contains(text, longest):
                raise RefusedError(Reason.LEFT_OUT, f"a document: {longest[:80]!r}")
        if not all(contains(text, part) for part in parts):
            yield "parts of documents"


def leaves_of(value: Any) -> Iterator[str]:
    """Yield texts and numbers of a value, as JSON writes them without quotes."""
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves_of(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def contains(text: str, part: str) -> bool:
    """Tell whether a text has a part: as it is, as JSON writes it, or with other spaces."""
    part = part.strip()
    if part in text:
        return True
    if json.dumps(part, ensure_ascii=False)[1:-1] in text or json.dumps(part)[1:-1] in text:
        return True
    return _squeezed(part) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(text.split())
