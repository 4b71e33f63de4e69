"""Values of a row: those that hold nothing, and those that are JSON written as text."""

from __future__ import annotations

import json
import math
from typing import Any


def is_blank(value: Any) -> bool:
    """Tell whether a value holds nothing: null, no text, or only such values."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    if isinstance(value, list):
        return all(map(is_blank, value))
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas' null


def drop_nulls(value: Any) -> Any:
    """Leave out the keys without a value that Arrow gives to every struct of a column."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def load_json(text: str) -> Any:
    """Return the value that a text is as JSON; the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def load_list(text: str) -> list[Any] | None:
    """Return the list that a text is as JSON; None where it is none."""
    value = load_json(text)
    return value if isinstance(value, list) else None
