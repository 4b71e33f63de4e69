"""A raw row -> what is trained on or scored of it, and how it was read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rm_ray.data.rows.columns import (
    ALIASES,
    NO_RULES,
    ColumnRules,
    RowColumns,
    find_path_standing,
    is_about,
    may_be_a_prompt,
    plain_name,
)
from rm_ray.data.rows.contract import (
    NO_CONTEXT,
    Context,
    Message,
    Pair,
    Reason,
    RefusedError,
    agree,
    check_turns,
    encodable,
    is_same,
    parse_margin,
    texts_of,
)
from rm_ray.data.rows.messages import read_documents, read_tools
from rm_ray.data.rows.prompts import answer_both, read_prompt
from rm_ray.data.rows.reading import RowReading, read_alike
from rm_ray.data.rows.transcripts import is_whole_transcript, refuse_labelled, split_transcript


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
    return pair, read_columns(columns, [pair.chosen, pair.rejected], pair.context)


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
        raise RefusedError(Reason.PROMPTS_DIFFER, _how_prompts_differ(chosen, rejected))
    check_turns(chosen, "chosen")
    check_turns(rejected[-1:], "rejected")
    rejected = [*chosen[:-1], rejected[-1]]
    if is_same(chosen[-1], rejected[-1]):
        raise RefusedError(Reason.IDENTICAL_RESPONSES)
    if len(chosen) == 1:
        refuse_labelled(chosen[0].get("content", ""), rejected[0].get("content", ""))
    return Pair(
        chosen=chosen,
        rejected=rejected,
        margin=parse_margin(columns.take("margin", blank=True)),
        source=take_source(columns, default_source, may_be_said=not _is_asked(chosen)),
        context=take_context(columns),
    )


def _how_prompts_differ(chosen: list[Message], rejected: list[Message]) -> str:
    for whole, reply, names in (
        (chosen, rejected, ("chosen", "rejected")),
        (rejected, chosen, ("rejected", "chosen")),
    ):
        if len(whole) > 1 and len(reply) == 1:
            return "{} is a whole conversation, {} one reply without its prompt".format(*names)
    return "the conversations differ before their last turn"


def take_source(columns: RowColumns, default: str, *, may_be_said: bool = False) -> str:
    """Return the name that a row gives its source, or the default.

    Where nobody asks anything, several words in a column that the rules do not name are left:
    they may be what is to be translated.
    """
    may_be_said = may_be_said and not columns.is_mapped("source")
    for column, value in columns.candidates("source"):
        if isinstance(value, str) and value and not (may_be_said and len(value.split()) > 1):
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


def read_columns(
    columns: RowColumns, conversations: Sequence[list[Message]], context: Context
) -> RowReading:
    """Say what the columns of a row became, now that all that are used have been taken.

    Of those that are left, one that usually holds part of a conversation is lost unless all that
    it says is in the conversations anyway: text before the last turn (a response often quotes its
    context), messages anywhere. Where nobody asks anything, the question may stand in any column
    that has a sentence in it.
    """
    is_asked = any(map(_is_asked, conversations))
    if columns.are_all_taken:
        return read_alike(tuple(columns.used.items()), is_asked=is_asked)
    left, lost = [], []
    prompts = [messages[:-1] for messages in conversations]
    asked = said = None
    for name, value in columns.left():
        left.append(name)
        if not _may_say_something(name, value, is_asked):
            continue
        if _is_text(value):
            asked = asked or _plain_texts(prompts, context)
            is_repeated = _is_repeated(value, asked)
        else:
            said = said or _plain_texts(conversations, context)
            is_repeated = _is_repeated(value, said)
        if not is_repeated or isinstance(value, int | float):
            lost.append(name)
    return read_alike(tuple(columns.used.items()), tuple(left), tuple(lost), is_asked=is_asked)


_INSTRUCTIONS = ("system", "developer")


def _is_asked(conversation: list[Message]) -> bool:
    """Tell whether somebody says something before the response."""
    return any(message["role"] not in _INSTRUCTIONS for message in conversation[:-1])


def _may_say_something(name: str, value: Any, is_asked: bool) -> bool:
    """Tell whether a column that is left may hold part of the conversation."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return plain_name(name) in ALIASES["prompt"]
    if find_path_standing(name) == "part":
        return True
    if is_asked:
        return False
    return may_be_a_prompt(name) or any(len(text.split()) > 1 for text in texts_of(value))


def _is_text(value: Any) -> bool:
    """Tell whether a value is text or texts, rather than messages."""
    if isinstance(value, list):
        return all(map(_is_text, value))
    if not isinstance(value, str) or is_whole_transcript(value):
        return False
    return not isinstance(_loaded(value), list | dict)


def _plain_texts(conversations: Sequence[list[Message]], context: Context) -> str:
    parts = texts_of([*conversations, context.tools, context.documents])
    return _plain("\0".join(parts)) or "\0"


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
        return all(_is_repeated(v, said) for k, v in value.items() if not is_about(k))
    if isinstance(value, list):
        return all(_is_repeated(item, said) for item in value)
    return value is None or isinstance(value, bool | int | float)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> str:
    return " ".join(text.split())
