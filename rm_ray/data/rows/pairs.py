"""A raw row -> its preference pair and reading."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import NO_CONTEXT, Context, take_context
from rm_ray.data.rows.prompt_columns import read_prompt
from rm_ray.data.rows.prompts import Prompt, answer_all
from rm_ray.data.rows.refusals import Reason, RefusedError, encodable
from rm_ray.data.rows.row_readings import RowReading, find_reading
from rm_ray.data.rows.transcripts import refuse_labelled_prompt
from rm_ray.data.rows.turns import Message, agree, asks_something, check_turns, is_same

SIDES = ("chosen", "rejected")

LARGEST_MARGIN = 1e6
"""Beyond this, a float32 loss has no digits left for the rewards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two conversations that differ only in their last turn, an assistant's."""

    chosen: list[Message]
    rejected: list[Message]
    margin: float = 0.0
    source: str = ""
    context: Context = NO_CONTEXT

    @property
    def prompt(self) -> list[Message]:
        """The turns that both conversations share."""
        return self.chosen[:-1]

    def swap(self) -> Pair:
        """Return the pair with its preference reversed."""
        return Pair(
            chosen=self.rejected,
            rejected=self.chosen,
            margin=self.margin,
            source=self.source,
            context=self.context,
        )


def parse_margin(value: Any) -> float:
    """Return a margin as a number; 0 if missing (pandas writes NaN).

    Raises:
        RefusedError: it is not a number, or is infinite or beyond ``LARGEST_MARGIN``.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return 0.0
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= LARGEST_MARGIN:
        hint = "; it is a number written as text" if isinstance(value, str) else ""
        raise RefusedError(Reason.BAD_MARGIN, f"{_shown(value)}{hint if _is_number(value) else ''}")
    return float(value)


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False


def _shown(value: Any) -> str:
    return (repr(value) if isinstance(value, int | float | str) else json.dumps(value))[:80]


def parse_pair(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> Pair:
    """Normalise a raw row to a pair.

    ``chosen`` and ``rejected`` are responses to the row's prompt (text, a message or several
    turns) or whole conversations: message lists in OpenAI's or ShareGPT's form, as JSON values or
    JSON text, or Anthropic's transcripts (``"\\n\\nHuman: ...\\n\\nAssistant: ..."``).

    Raises:
        RefusedError: the row breaks the contract.
    """
    return read_pair(row, default_source, rules)[0]


def read_pair(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> tuple[Pair, RowReading]:
    """Normalise a raw row to a pair, and return which columns became which part.

    Raises:
        RefusedError: the row breaks the contract.
    """
    columns = RowColumns(row, rules)
    pair = take_pair(columns, default_source)
    return pair, find_reading(columns, [pair.chosen, pair.rejected], pair.context)


def take_pair(columns: RowColumns, default_source: str) -> Pair:
    """Read the pair from a row's columns.

    Raises:
        RefusedError: the row breaks the contract.
    """
    sides = [columns.take(side, blank=True) for side in SIDES]
    if None in sides:
        raise RefusedError(Reason.MISSING_FIELD, f"columns: {', '.join(columns.names) or 'none'}")
    chosen, rejected = answer_pair(read_prompt(columns), sides)
    return Pair(
        chosen=chosen,
        rejected=rejected,
        margin=parse_margin(columns.take("margin", blank=True)),
        source=take_source(columns, default_source, may_be_prompt=not asks_something(chosen)),
        context=take_context(columns),
    )


def answer_pair(prompt: Prompt, sides: Sequence[Any]) -> list[list[Message]]:
    """Return the conversations of the chosen and the rejected response, in this order.

    Raises:
        RefusedError: they are malformed, begin differently, or are identical.
    """
    conversations = answer_alike(prompt, sides, SIDES)
    if is_same(conversations[0][-1], conversations[1][-1]):
        raise RefusedError(Reason.IDENTICAL_RESPONSES)
    refuse_shared_prompt(conversations)
    return conversations


def refuse_shared_prompt(conversations: Sequence[list[Message]]) -> None:
    """Refuse responses without a prompt that all begin with one in an unknown format.

    Raises:
        RefusedError: two of them do.
    """
    if len(conversations[0]) == 1:
        first, *others = (messages[0].get("content", "") for messages in conversations)
        for other in others:
            refuse_labelled_prompt(first, other)


def answer_alike(
    prompt: Prompt, values: Sequence[Any], names: Sequence[str]
) -> list[list[Message]]:
    """Return the conversations of a prompt's responses, which share all turns but the last.

    Raises:
        RefusedError: one is malformed, or they begin differently.
    """
    first, *others = answer_all(prompt, values, names)
    shared = first[:-1]
    for i, other in enumerate(others, start=1):
        if not agree(shared, other[:-1]):
            detail = _how_prompts_differ((first, other), (names[0], names[i]))
            raise RefusedError(Reason.PROMPTS_DIFFER, detail)
    check_turns(first, names[0])
    for i, other in enumerate(others, start=1):
        check_turns(other[-1:], names[i])
    return [first, *([*shared, other[-1]] for other in others)]


def _how_prompts_differ(
    conversations: tuple[list[Message], list[Message]], names: tuple[str, str]
) -> str:
    for whole, reply in ((0, 1), (1, 0)):
        if len(conversations[whole]) > 1 and len(conversations[reply]) == 1:
            return (
                f"{names[whole]} is a whole conversation, {names[reply]} one reply without its "
                "prompt"
            )
    return "the conversations differ before their last turn"


def take_source(columns: RowColumns, default: str, *, may_be_prompt: bool = False) -> str:
    """Return the source that a row names, or the default.

    If it ``may_be_prompt`` (the pair has none), a column of several words that the rules do not
    name is left unused: it may be a text to translate.
    """
    may_be_prompt = may_be_prompt and not columns.is_mapped("source")
    for column, value in columns.candidates("source"):
        if isinstance(value, str) and value and not (may_be_prompt and len(value.split()) > 1):
            columns.mark("source", column)
            return encodable(value)
    return default
