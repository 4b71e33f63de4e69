"""A raw row -> its comparison group and reading."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rm_ray.config.column_rules import NO_RULES, ColumnRules
from rm_ray.data.preferences.comparisons import (
    compare_ranks,
    compare_scores,
    compare_sides,
    read_ranks,
    refuse_contradiction,
    take_preference,
)
from rm_ray.data.preferences.distinct import merge_identical
from rm_ray.data.preferences.response_lists import (
    is_list_of_responses,
    read_responses,
    split_list,
    split_side,
)
from rm_ray.data.preferences.reversals import find_reversal
from rm_ray.data.preferences.scores import take_scores
from rm_ray.data.published.forms import find_form
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.context import take_context
from rm_ray.data.rows.groups import Comparison, Group
from rm_ray.data.rows.pairs import (
    SIDES,
    answer_alike,
    answer_pair,
    parse_margin,
    refuse_shared_prompt,
    take_source,
)
from rm_ray.data.rows.prompt_columns import read_prompt
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.row_readings import RowReading, find_reading
from rm_ray.data.rows.turns import Message, asks_something

Conversations = list[list[Message]]


def parse_row(
    text: str, origin: str, rules: ColumnRules
) -> tuple[Group | RefusedError, RowReading | None]:
    """Return the group of a raw JSON row and its reading, or the refusal and None."""
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            return RefusedError(Reason.NOT_MESSAGES, f"the row is a {type(row).__name__}"), None
        return read_group(row, origin, rules)
    except RefusedError as refusal:
        return refusal, None
    except RecursionError:
        return RefusedError(Reason.NOT_MESSAGES, "a value is nested too deeply"), None


def parse_group(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> Group:
    """Normalise a raw row to a comparison group.

    Raises:
        RefusedError: the row breaks the contract.
    """
    return read_group(row, default_source, rules)[0]


def read_group(
    row: dict[str, Any], default_source: str = "", rules: ColumnRules = NO_RULES
) -> tuple[Group, RowReading]:
    """Normalise a raw row to a comparison group, and return which columns became which part.

    A row has ``chosen`` and ``rejected``, each one response or a list of them, or ``responses``
    with ``ranks`` or ``scores``, or one ``response`` with a score; or a published form.

    Raises:
        RefusedError: the row breaks the contract.
    """
    form = find_form(tuple(row), rules)
    given, ignored, name = row, rules.ignore, ""
    if form is not None:
        row, name = form.to_documented(row, rules), form.name
        rules = form.rules_for_documented(rules)
    columns = RowColumns(row, rules)
    sides = [columns.take(side, blank=True) for side in SIDES]
    if sides[0] is None and sides[1] is None:
        columns = RowColumns(row, rules)  # takes no column that is null
        group, conversations = _take_responses(columns, default_source, rules)
    elif sides[0] is None or sides[1] is None:
        raise RefusedError(Reason.MISSING_FIELD, f"columns: {', '.join(columns.names)}")
    elif is_list_of_responses(sides[0]) or is_list_of_responses(sides[1]):
        group, conversations = _take_sides(columns, sides, default_source, rules)
    else:
        group, conversations = _take_pair(columns, sides, default_source)
    reversal = find_reversal(given, columns, ignored)
    if form is not None:
        columns.rename_used(form.origins_by(rules))
    return group, find_reading(columns, conversations, group.context, name, reversal)


def has_preference(row: dict[str, Any], rules: ColumnRules = NO_RULES) -> bool:
    """Return whether a row has the columns of a comparison group, whatever they hold."""
    form = find_form(tuple(row), rules)
    if form is not None:
        return not form.find_missing(row, rules)
    columns = RowColumns(row, rules)
    present = {part for part in _PARTS if any(columns.candidates(part))}
    if any(name in columns.names for name, _ in rules.score_weights):
        present.add("scores")
    has_labels = "scores" in present or {"responses", "ranks"} <= present
    return present.issuperset(SIDES) or (has_labels and bool(present & {"response", "responses"}))


_PARTS = (*SIDES, "response", "responses", "ranks", "scores")


def _take_pair(
    columns: RowColumns, sides: Sequence[Any], default_source: str
) -> tuple[Group, Conversations]:
    conversations = answer_pair(read_prompt(columns), sides)
    margin = parse_margin(columns.take("margin", blank=True))
    source = take_source(
        columns, default_source, may_be_prompt=not asks_something(conversations[0])
    )
    context = take_context(columns)
    probability = take_preference(columns)
    if probability == 1:
        chosen, rejected = conversations
        group = Group.pair(chosen, rejected, margin=margin, source=source, context=context)
        return group, conversations
    comparisons = compare_sides((0,), (1,), probability=probability, margin=margin)
    if probability < 0.5:
        conversations.reverse()
        comparisons = [each.swap() for each in comparisons]
    group = Group(
        prompt=conversations[0][:-1],
        responses=[messages[-1] for messages in conversations],
        comparisons=tuple(comparisons),
        source=source,
        context=context,
    )
    return group, conversations


def _take_sides(
    columns: RowColumns, sides: Sequence[Any], default_source: str, rules: ColumnRules
) -> tuple[Group, Conversations]:
    """Read lists of chosen and rejected responses: each chosen one beats each rejected one."""
    prompt = read_prompt(columns)
    (chosen, names), (rejected, more) = (
        split_side(value, prompt, side) for value, side in zip(sides, SIDES, strict=True)
    )
    conversations = answer_alike(prompt, [*chosen, *rejected], [*names, *more])
    places = range(len(conversations))
    probability, margin = take_preference(columns), _take_margin(columns)
    comparisons = compare_sides(
        places[: len(chosen)], places[len(chosen) :], probability=probability, margin=margin
    )
    return _build(columns, conversations, comparisons, None, default_source, rules, may_tie=False)


def _take_responses(
    columns: RowColumns, default_source: str, rules: ColumnRules
) -> tuple[Group, Conversations]:
    """Read ranked or scored responses: ranks compare them, or else scores do."""
    if columns.peek("responses") is not None:
        responses = read_responses(columns.take("responses", blank=True))
        prompt = read_prompt(columns)
        values, names = split_list(responses, prompt, "responses")
    elif columns.peek("response") is not None:
        values, names = [columns.take("response", blank=True)], ["response"]
        prompt = read_prompt(columns)
    else:
        raise RefusedError(Reason.MISSING_FIELD, f"columns: {', '.join(columns.names) or 'none'}")
    conversations = answer_alike(prompt, values, names)
    _refuse_preference(columns)
    given = columns.take("ranks")
    ranks = None if given is None else read_ranks(given, len(values))
    scores = take_scores(columns, len(values), rules)
    margin = _take_margin(columns)
    if ranks is not None:
        comparisons = compare_ranks(ranks, margin)
        if scores is not None:
            refuse_contradiction(ranks, scores)
    elif scores is not None:
        comparisons = compare_scores(scores, margin)
    else:
        there = ", ".join(columns.names)
        raise RefusedError(Reason.NOTHING_COMPARED, f"neither ranks nor scores; columns: {there}")
    if margin and comparisons and all(each.is_tie for each in comparisons):
        raise RefusedError(Reason.BAD_MARGIN, f"margin is {margin:g}, and all responses tie")
    return _build(columns, conversations, comparisons, scores, default_source, rules, may_tie=True)


def _take_margin(columns: RowColumns) -> float:
    return parse_margin(columns.take("margin", blank=True))


def _refuse_preference(columns: RowColumns) -> None:
    """Refuse ``preference`` or ``tie`` where there are no two sides.

    Raises:
        RefusedError: the row has one.
    """
    found = [part for part in ("preference", "tie") if columns.peek(part) not in (None, False)]
    if found:
        raise RefusedError(
            Reason.BAD_PREFERENCE,
            f"{found[0]} compares chosen with rejected, and the row has responses; leave it out "
            f"with data.ignore_columns {found[0]}",
        )


def _build(
    columns: RowColumns,
    conversations: Conversations,
    comparisons: Sequence[Comparison],
    scores: Sequence[float] | None,
    default_source: str,
    rules: ColumnRules,
    *,
    may_tie: bool,
) -> tuple[Group, Conversations]:
    """Return the group of distinct responses with the conversations of all.

    Raises:
        RefusedError: nothing is left to learn from, or there are too many responses.
    """
    responses = [messages[-1] for messages in conversations]
    kept, merged = merge_identical(responses, comparisons, may_tie=may_tie)
    if len(kept) > rules.max_responses:
        raise RefusedError(
            Reason.TOO_MANY_RESPONSES,
            f"{len(kept)}; data.max_responses allows {rules.max_responses}",
        )
    if not merged and scores is None:
        raise RefusedError(Reason.NOTHING_COMPARED, "there is one distinct response, and no score")
    refuse_shared_prompt(conversations)
    source = take_source(
        columns, default_source, may_be_prompt=not asks_something(conversations[0])
    )
    group = Group(
        prompt=conversations[0][:-1],
        responses=[responses[i] for i in kept],
        comparisons=merged,
        scores=None if scores is None else tuple(scores[i] for i in kept),
        source=source,
        context=take_context(columns),
    )
    return group, conversations
