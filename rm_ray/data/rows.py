"""A raw row -> what is trained on or scored of it, and how it was read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rm_ray.data.columns import NO_RULES, ColumnRules, RowColumns, find_standing
from rm_ray.data.contract import (
    NO_CONTEXT,
    Context,
    Message,
    Pair,
    Reason,
    RefusedError,
    agree,
    check_turns,
    encodable,
    parse_margin,
    texts_of,
    without_notes,
)
from rm_ray.data.messages import read_documents, read_tools
from rm_ray.data.prompts import answer_both, read_prompt
from rm_ray.data.reading import RowReading
from rm_ray.data.transcripts import is_whole_transcript, split_transcript


def parse_pair(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> Pair:
    """Normalise a raw row to a pair.

    ``chosen`` and ``rejected`` are responses (text, a message or several turns) to the prompt of
    the row, or whole conversations: message lists of OpenAI's or ShareGPT's form, as JSON or as its
    text, or Anthropic's transcripts (``"\\n\\nHuman: ...\\n\\nAssistant: ..."``).

    Raises:
        RefusedError: the row breaks the contract.
    """
    return read_pair(row, default_source, rules)[0]


def read_pair(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> tuple[Pair, RowReading]:
    """Normalise a raw row to a pair, and say which columns became what.

    Raises:
        RefusedError: the row breaks the contract.
    """
    columns = RowColumns(row, rules)
    pair = take_pair(columns, default_source)
    return pair, read_columns(columns, [*pair.chosen, pair.rejected[-1]], pair.context)


def take_pair(columns: RowColumns, default_source: str) -> Pair:
    """Read the pair of a row.

    Raises:
        RefusedError: the row breaks the contract.
    """
    values = {side: columns.take(side, blank=True) for side in ("chosen", "rejected")}
    if any(value is None for value in values.values()):
        there = ", ".join(columns.names) or "none"
        raise RefusedError(Reason.MISSING_FIELD, f"columns: {there}")
    prompt = read_prompt(columns)
    chosen, rejected = answer_both(prompt, **values)
    if not agree(chosen[:-1], rejected[:-1]):
        raise RefusedError(Reason.PROMPTS_DIFFER)
    rejected = [*chosen[:-1], rejected[-1]]
    for side, messages in (("chosen", chosen), ("rejected", rejected)):
        check_turns(messages, side)
    if without_notes(chosen[-1]) == without_notes(rejected[-1]):
        raise RefusedError(Reason.IDENTICAL_RESPONSES)
    return Pair(
        chosen=chosen,
        rejected=rejected,
        margin=parse_margin(columns.take("margin", blank=True)),
        source=take_source(columns, default_source),
        context=take_context(columns),
    )


def take_source(columns: RowColumns, default: str) -> str:
    """Return the name that a row gives its source, or the default."""
    for column, value in columns.candidates("source"):
        if isinstance(value, str) and value:
            columns.mark("source", column)
            return encodable(value)
    return default


def take_context(columns: RowColumns) -> Context:
    """Return the tools and documents of a row.

    Raises:
        RefusedError: they are of another form.
    """
    tools = read_tools(columns.take("tools"))
    documents = read_documents(columns.take("documents"))
    if tools is None and documents is None:
        return NO_CONTEXT
    return Context(tools=tools, documents=documents)


def read_columns(columns: RowColumns, messages: Sequence[Message], context: Context) -> RowReading:
    """Say what the columns of a row became, now that all that are used have been taken.

    Of those that are left, one that usually holds part of a conversation is lost unless all that
    it says is in the conversation anyway.
    """
    left, lost = [], []
    said: str | None = None
    for name, value in columns.left():
        left.append(name)
        if find_standing(name.split(".")[0]) == "part" and not isinstance(value, bool):
            if said is None:
                said = _plain("\0".join(texts_of([*messages, context.tools, context.documents])))
            if not _is_repeated(value, said):
                lost.append(name)
    return RowReading(used=columns.used, left=tuple(left), lost=tuple(lost))


_NAMES_OF_SPEAKERS = ("role", "from", "type")


def _is_repeated(value: Any, said: str) -> bool:
    """Tell whether all texts of a value are in the conversation too."""
    if isinstance(value, str):
        text = _plain(value.strip())
        if text in said:
            return True
        if is_whole_transcript(value):
            return all(_plain(part) in said for part in split_transcript(value))
        loaded = _loaded(value) if text[:1] in ("[", "{") else None
        return loaded is not None and _is_repeated(loaded, said)
    if isinstance(value, dict):
        return all(_is_repeated(v, said) for k, v in value.items() if k not in _NAMES_OF_SPEAKERS)
    if isinstance(value, list):
        return all(_is_repeated(item, said) for item in value)
    return value is None or isinstance(value, bool)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> str:
    return " ".join(text.split())
