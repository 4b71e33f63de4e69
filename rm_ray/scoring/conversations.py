"""A raw row -> its conversations to score: one, a pair, or a prompt's responses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.preferences.numbers import unwrap_json
from rm_ray.data.preferences.response_lists import (
    is_list_of_responses,
    read_responses,
    split_list,
    split_side,
)
from rm_ray.data.published.forms import find_form
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import NO_CONTEXT, Context, take_context
from rm_ray.data.rows.pairs import (
    SIDES,
    answer_alike,
    parse_margin,
    take_pair,
    take_source,
)
from rm_ray.data.rows.prompt_columns import read_prompt
from rm_ray.data.rows.prompts import Prompt, answer_all
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.row_readings import RowReading, find_reading
from rm_ray.data.rows.turns import Message, asks_something, check_turns

Form = Literal["conversation", "pair", "responses"]

SCORED_PARTS = ("chosen", "rejected", "messages", "response", "responses")
"""Every row has at least one of these parts."""


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """The conversations of a row."""

    form: Form
    messages: list[list[Message]]
    """Complete conversations, each ending with the response."""
    context: Context = NO_CONTEXT
    """Tools and documents for the chat template, shared by all conversations."""
    num_correct: int = 0
    """The first ``num_correct`` conversations have a right response; 0 if unknown, or if the row
    says that the chosen side may not be the right one."""
    margin: float = 0.0
    source: str = ""
    subset: str = ""
    id: str = ""
    responses: list[str] = field(default_factory=list)
    """Contents of the last turns."""
    reading: RowReading = field(default_factory=RowReading)
    """How the columns were read."""


def parse_conversations(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> Conversations:
    """Parse the conversations of a raw row.

    Rows are read as in training: ``chosen`` and ``rejected``, each one response or a list of
    them, or ``responses``, or one ``response``, or a published form. Unlike in training, nothing
    needs to say which response is better, and ``messages`` alone are a conversation.

    Raises:
        RefusedError: the row has no conversation, or a malformed one.
    """
    form = find_form(tuple(row), rules)
    given = RowColumns(row, rules)  # a published form keeps only what training reads
    about: dict[str, Any] = {part: _text(given.take(part)) for part in ("subset", "id")}
    if form is None:
        return replace(_parse(given, default_source), **about)
    columns = RowColumns(form.to_documented(row, rules), form.rules_for_documented(rules))
    parsed = _parse(columns, default_source)
    return replace(parsed, **about, reading=replace(parsed.reading, form=form.name))


def _parse(columns: RowColumns, default_source: str) -> Conversations:
    sides = [columns.peek(side) for side in SIDES]
    if any(side is not None for side in sides):
        are_lists = None not in sides and any(map(is_list_of_responses, sides))
        return (_parse_sides if are_lists else _parse_pair)(columns, default_source)
    values = {part: columns.peek(part) for part in ("messages", "response", "responses")}
    source = take_source(columns, default_source)
    listed = unwrap_json(values["responses"])
    others = [values[part] for part in ("messages", "response") if values[part] is not None]
    if (isinstance(listed, list) and listed) or (listed is not None and not others):
        responses = read_responses(columns.take("responses", blank=True))
        prompt = read_prompt(columns)
        messages = _answer(prompt, *split_list(responses, prompt, "responses"))
        return _build("responses", columns, messages, source=source)
    if values["response"] is not None:
        response = columns.take("response", blank=True)
        messages = _answer(read_prompt(columns), [response], ["response"])
        return _build("conversation", columns, messages, source=source)
    if values["messages"] is not None:
        whole = columns.take("messages", blank=True)
        messages = [read_prompt(columns).answer(whole, "messages")]
        check_turns(messages[0], "messages")
        return _build("conversation", columns, messages, source=source)
    there = ", ".join(columns.names) or "none"
    raise RefusedError(Reason.MISSING_FIELD, f"of {', '.join(SCORED_PARTS)}; columns: {there}")


def _parse_pair(columns: RowColumns, default_source: str) -> Conversations:
    pair = take_pair(columns, default_source)
    about = {"margin": pair.margin, "source": pair.source}
    right = 1 if _is_sure(columns) else 0
    messages = [pair.chosen, pair.rejected]
    return _build("pair", columns, messages, pair.context, num_correct=right, **about)


def _parse_sides(columns: RowColumns, default_source: str) -> Conversations:
    """Read sides of which at least one is a list of responses; see ``group_reading``."""
    sides = [columns.take(side, blank=True) for side in SIDES]
    prompt = read_prompt(columns)
    (chosen, names), (rejected, more) = (
        split_side(value, prompt, side) for value, side in zip(sides, SIDES, strict=True)
    )
    messages = answer_alike(prompt, [*chosen, *rejected], [*names, *more])
    form: Form = "pair" if (*names, *more) == SIDES else "responses"  # each a list of its turns
    return _build(
        form,
        columns,
        messages,
        num_correct=len(chosen) if _is_sure(columns) else 0,
        margin=parse_margin(columns.take("margin", blank=True)),
        source=take_source(columns, default_source, may_be_prompt=not asks_something(messages[0])),
    )


def _is_sure(columns: RowColumns) -> bool:
    """Return whether nothing says that the chosen side may not be the better one."""
    preference, tie = columns.take("preference"), columns.take("tie")
    return preference in (None, 1) and not tie


def _answer(prompt: Prompt, answers: list[Any], names: list[str]) -> list[list[Message]]:
    """Return a prompt's conversations, one per answer."""
    conversations = answer_all(prompt, answers, names)
    for messages, name in zip(conversations, names, strict=True):
        check_turns(messages, name)
    return conversations


def _build(
    form: Form,
    columns: RowColumns,
    messages: list[list[Message]],
    context: Context | None = None,
    **about: Any,
) -> Conversations:
    context = take_context(columns) if context is None else context
    return Conversations(
        form=form,
        messages=messages,
        context=context,
        responses=[conversation[-1].get("content", "") for conversation in messages],
        reading=find_reading(columns, messages, context),
        **about,
    )


def _text(value: Any) -> str:
    """Return a subset or an id, which may be a number, as text."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, sort_keys=True)
