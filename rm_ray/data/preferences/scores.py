"""The scores of a row's responses: one number each, or several attributes that make one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.preferences.numbers import read_number, require_one_each, unwrap_json
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.refusals import Reason, RefusedError

Weights = Mapping[str, float]


def take_scores(columns: RowColumns, count: int, rules: ColumnRules) -> list[float] | None:
    """Return the scores of a row's responses, or None if it has none.

    Columns that are named like weighted attributes are attributes, and win over a column of plain
    numbers.

    Raises:
        RefusedError: they are not one usable number for each response, or ``data.columns`` maps
            plain numbers beside such columns.
    """
    weights = dict(rules.score_weights)
    named = [name for name in weights if columns.has(name)]
    if named and not _has_attributes(columns.peek("scores")):
        column = rules.columns.get("scores")
        if column not in (None, *named) and columns.peek("scores") is not None:
            raise RefusedError(
                Reason.BAD_SCORES,
                f"data.columns reads them from '{column}', and data.score_weights from "
                f"'{named[0]}'; use one of the two",
            )
        return read_scores({n: columns.take_named("scores", n) for n in named}, count, weights)
    value = columns.take("scores")
    return None if value is None else read_scores(value, count, weights)


def _has_attributes(value: Any) -> bool:
    value = unwrap_json(value)
    return any(isinstance(each, dict) for each in (value if isinstance(value, list) else [value]))


def read_scores(value: Any, count: int, weights: Weights) -> list[float]:
    """Return one score for each of ``count`` responses.

    The value is a list of numbers or of mappings from attributes to numbers, or a mapping from
    attributes to such lists. For one response the list may be left out.

    Raises:
        RefusedError: it is something else.
    """
    value = unwrap_json(value)
    if isinstance(value, dict):
        value = _by_response(value, count)
    elif count == 1 and not isinstance(value, list):
        value = [value]
    listed = require_one_each(value, count, "scores", Reason.BAD_SCORES)
    if not any(isinstance(score, dict) for score in listed):
        return [
            read_number(score, f"scores.{i}", Reason.BAD_SCORES) for i, score in enumerate(listed)
        ]
    attributes = _attributes(listed, weights)
    return [_combine(score, f"scores.{i}", attributes, weights) for i, score in enumerate(listed)]


def _by_response(by_attribute: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Turn a mapping of lists into a list of mappings; of one response, numbers into one."""
    if count == 1 and not any(isinstance(values, list) for values in by_attribute.values()):
        return [by_attribute]
    columns = {
        name: require_one_each(values, count, f"scores.{name}", Reason.BAD_SCORES)
        for name, values in by_attribute.items()
    }
    return [{name: values[i] for name, values in columns.items()} for i in range(count)]


def _attributes(scores: list[Any], weights: Weights) -> list[str]:
    """Return the attributes that make a score: the weighted ones, or all, alike in all responses.

    Raises:
        RefusedError: a response has no attributes, or others than the first one.
    """
    first, *others = scores
    for i, score in enumerate(scores):
        if not isinstance(score, dict) or not score:
            raise RefusedError(
                Reason.BAD_SCORES, f"scores.{i} has no attributes, and another response has some"
            )
    if weights:
        return list(weights)
    for i, score in enumerate(others, start=1):
        if unlike := sorted(first.keys() ^ score.keys()):
            raise RefusedError(
                Reason.BAD_SCORES,
                f"the responses 0 and {i} have other attributes ({', '.join(unlike)[:80]}); name "
                "those to use in data.score_weights",
            )
    return list(first)


def _combine(score: dict[str, Any], name: str, attributes: list[str], weights: Weights) -> float:
    """Return the weighted sum of a response's attributes, or their mean without weights.

    Raises:
        RefusedError: an attribute is missing or not a number.
    """
    if missing := [attribute for attribute in attributes if attribute not in score]:
        raise RefusedError(
            Reason.BAD_SCORES,
            f"{name} has no {', '.join(missing)[:80]}, which data.score_weights names; it has: "
            f"{', '.join(score)[:80]}",
        )
    numbers = {a: read_number(score[a], f"{name}.{a}", Reason.BAD_SCORES) for a in attributes}
    if not weights:
        return math.fsum(numbers.values()) / len(numbers)
    total = math.fsum(weights[attribute] * number for attribute, number in numbers.items())
    return read_number(total, f"the weighted {name}", Reason.BAD_SCORES)
