"""Numbers of a row: ranks, scores and probabilities, checked and never guessed."""

from __future__ import annotations

import json
import math
from typing import Any

from rm_ray.data.rows.pairs import LARGEST_MARGIN
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.values import load_json


def read_number(value: Any, name: str, reason: Reason) -> float:
    """Return a number of a row; it is neither text nor a truth value, and of usable size.

    Raises:
        RefusedError: it is none; the detail says what it is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError(reason, f"{name} is {_described(value)}")
    if value != value:  # an integer may be too large for math.isnan
        raise RefusedError(
            reason, f"{name} is not a number (NaN); leave out a response without one"
        )
    if not abs(value) <= LARGEST_MARGIN:
        raise RefusedError(
            reason, f"{name} is {str(value)[:80]}; its size is at most {LARGEST_MARGIN:,.0f}"
        )
    return float(value)


def _described(value: Any) -> str:
    if value is None:
        return "null; leave out a response without one"
    if isinstance(value, bool):
        return f"{json.dumps(value)}, not a number"
    if isinstance(value, str):
        hint = ", a number written as text" if _is_number(value) else ", a text and not a number"
        return f"{value[:80]!r}{hint}"
    return f"a {type(value).__name__} and not a number"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def unwrap_json(value: Any) -> Any:
    """Return the list or object that a text encodes as JSON, as in CSV files, or the value."""
    loaded = load_json(value) if isinstance(value, str) else None
    return loaded if isinstance(loaded, list | dict) else value


def require_one_each(values: Any, count: int, name: str, reason: Reason) -> list[Any]:
    """Return a list that has one value for each of ``count`` responses.

    Raises:
        RefusedError: it is not a list, or of another length.
    """
    if not isinstance(values, list):
        raise RefusedError(
            reason, f"{name} is a {type(values).__name__}, not a list as long as the responses"
        )
    if len(values) != count:
        raise RefusedError(reason, f"{name} has {len(values)} values for {count} responses")
    return values
