"""Finding parts of a row that its rendered text leaves out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rm_ray.data.rows.context import Context
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import texts_of

DISTINCTIVE_LENGTH = 12
"""Characters from which on a match in a text cannot be a coincidence."""


def is_distinctive(value: Any) -> bool:
    """Return whether a value has texts, all too long to match by coincidence."""
    parts = list(texts_of(value))
    return bool(parts) and all(len(part) >= DISTINCTIVE_LENGTH for part in parts)


def refuse_lost_calls(calls: list[dict[str, Any]], text: str, turn: int) -> None:
    """Refuse a turn whose tool calls are missing from the text, by name or arguments.

    Raises:
        RefusedError: names the missing part.
    """
    for call in calls:
        function = call["function"]
        for part in (function["name"], *leaves_of(function.get("arguments"))):
            if not contains(text, part):
                raise RefusedError(
                    Reason.LEFT_OUT, f"a tool call in turn {turn + 1}: {part[:80]!r}"
                )


def find_lost_context(context: Context, text: str) -> Iterator[str]:
    """Yield a note for tools and documents that are partly missing from the text.

    Raises:
        RefusedError: a tool's name or a whole document is missing.
    """
    for tool in context.tools or ():
        name = tool.get("function", tool).get("name", "")
        if name and not contains(text, name):
            raise RefusedError(Reason.LEFT_OUT, f"the tool {name!r}")
        if not all(contains(text, part) for part in leaves_of(tool)):
            yield "parts of tools"
    for document in context.documents or ():
        parts = list(leaves_of(document))
        distinctive = [part for part in parts if len(part) >= DISTINCTIVE_LENGTH]
        if parts and not any(contains(text, part) for part in distinctive):
            longest = max(parts, key=len)
            if not contains(text, longest):
                raise RefusedError(Reason.LEFT_OUT, f"a document: {longest[:80]!r}")
        if not all(contains(text, part) for part in parts):
            yield "parts of documents"


def leaves_of(value: Any) -> Iterator[str]:
    """Yield the texts and numbers of a value, as JSON without quotes."""
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
    """Return whether a text contains a part as-is, JSON-escaped, or with other whitespace."""
    part = part.strip()
    if part in text:
        return True
    if json.dumps(part, ensure_ascii=False)[1:-1] in text or json.dumps(part)[1:-1] in text:
        return True
    return _squeezed(part) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(text.split())
