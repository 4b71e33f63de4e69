"""The context of a conversation: the tools and documents that a chat template receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.values import drop_nulls, is_blank, load_json
from rm_ray.data.sources.raw_json import foreign_type

Schemas = list[dict[str, Any]]
"""Tools or documents, in the form that chat templates take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The tools and documents of a row; None if it has none."""

    tools: Schemas | None = None
    documents: Schemas | None = None


NO_CONTEXT = Context()


def take_context(columns: RowColumns) -> Context:
    """Return the tools and documents of a row.

    Raises:
        RefusedError: they have another form.
    """
    tools = read_tools(columns.take("tools"))
    documents = read_documents(columns.take("documents"))
    if tools is None and documents is None:
        return NO_CONTEXT
    return Context(tools=tools, documents=documents)


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return a row's tools as a list of schemas in OpenAI's form, or None if it has none.

    They may be a list of schemas, with or without ``{"type": "function"}`` around them, or the
    JSON text of such a list.

    Raises:
        RefusedError: it is something else.
    """
    tools = load_json(value) if isinstance(value, str) else value
    if isinstance(tools, list):
        tools = [load_json(tool) if isinstance(tool, str) else tool for tool in tools]
    if is_blank(tools):
        return None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        hint = "not JSON (write it by json.dumps, not by str): " if isinstance(value, str) else ""
        raise RefusedError(Reason.BAD_TOOLS, f"{hint}{str(value)[:80]}")
    return [_schema(drop_nulls(tool)) for tool in tools]


def _schema(tool: dict[str, Any]) -> dict[str, Any]:
    if "function" not in tool and isinstance(tool.get("name"), str):
        if tool.get("type") not in (None, "function"):
            return tool
        inside = {key: value for key, value in tool.items() if key != "type"}
        return {"type": "function", "function": inside}
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RefusedError(Reason.BAD_TOOLS, f"a tool without a name: {str(tool)[:80]}")
    return tool


def read_documents(value: Any) -> list[dict[str, Any]] | None:
    """Return a row's documents in the form that templates take, or None if it has none.

    A document is an object, or a text, which becomes ``{"text": ...}``.

    Raises:
        RefusedError: it is something else.
    """
    documents = load_json(value) if isinstance(value, str) else value
    if is_blank(documents):
        return None
    listed = documents if isinstance(documents, list) else [documents]
    read = [{"text": d} if isinstance(d, str) else drop_nulls(d) for d in listed if not is_blank(d)]
    if kind := next((kind for kind in map(foreign_type, read) if kind), None):
        raise RefusedError(Reason.NOT_TEXT, f"a document of type {kind}")
    if not all(isinstance(document, dict) for document in read):
        raise RefusedError(Reason.BAD_DOCUMENTS, str(value)[:80])
    return read
