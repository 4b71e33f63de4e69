"""A raw row -> its conversations to score: one, a pair, or a prompt's responses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import NO_CONTEXT, Context, take_context
from rm_ray.data.rows.pairs import take_pair, take_source
from rm_ray.data.rows.prompt_columns import read_prompt
from rm_ray.data.rows.prompts import Prompt
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.row_readings import RowReading, find_reading
from rm_ray.data.rows.turns import Message, check_turns

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
    """The first ``num_correct`` conversations have a right response; 0 if unknown."""
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

    A preference pair has ``chosen`` and ``rejected``, as in training; if these are lists of
    strings, each string is a response to the prompt (RewardBench 2). Otherwise ``messages`` is a
    conversation, and ``response`` or ``responses`` answer the prompt.

    Raises:
        RefusedError: the row has no conversation, or a malformed one.
    """
    columns = RowColumns(row, rules)
    about: dict[str, Any] = {part: _text(columns.take(part)) for part in ("subset", "id")}
    values = {part: _peek(columns, part) for part in SCORED_PARTS}
    chosen, rejected = values["chosen"], values["rejected"]
    if _is_responses(chosen) and _is_responses(rejected):
        answers = [*columns.take("chosen"), *columns.take("rejected")]
        messages = _answer(read_prompt(columns), answers)
        return _build("responses", columns, messages, num_correct=len(chosen), **about)
    if chosen is not None or rejected is not None:
        pair = take_pair(columns, default_source)
        about |= {"margin": pair.margin, "source": pair.source}
        messages = [pair.chosen, pair.rejected]
        return _build("pair", columns, messages, pair.context, num_correct=1, **about)
    about["source"] = take_source(columns, default_source)
    if values["messages"] is not None and values["response"] is None:
        whole = columns.take("messages", blank=True)
        return _build("conversation", columns, _answer(read_prompt(columns), [whole]), **about)
    if values["response"] is not None:
        response = columns.take("response", blank=True)
        return _build("conversation", columns, _answer(read_prompt(columns), [response]), **about)
    if isinstance(values["responses"], list):
        responses = columns.take("responses", blank=True)
        return _build("responses", columns, _answer(read_prompt(columns), responses), **about)
    there = ", ".join(row) or "none"
    raise RefusedError(Reason.MISSING_FIELD, f"of {', '.join(SCORED_PARTS)}; columns: {there}")


def _peek(columns: RowColumns, part: str) -> Any:
    """Return a part's value without marking its column as used."""
    return next((value for _, value in columns.candidates(part) if value is not None), None)


def _is_responses(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _answer(prompt: Prompt, answers: list[Any]) -> list[list[Message]]:
    """Return a prompt's conversations, one per answer."""
    if not answers:
        raise RefusedError(Reason.EMPTY, "there are no responses")
    conversations = [prompt.answer(answer, "a response") for answer in answers]
    for messages in conversations:
        check_turns(messages, "a conversation")
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
    return "" if value is None else str(value)
