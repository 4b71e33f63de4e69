"""Helpers for values of a row: blank values, nulls and JSON text."""

from __future__ import annotations

import json
import math
from typing import Any


def is_blank(value: Any) -> bool:
    """Return whether a value is null or NaN, blank text, or contains only such values."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    if isinstance(value, list):
        return all(map(is_blank, value))
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas' null


def drop_nulls(value: Any) -> Any:
    """Remove null keys, which Arrow adds to every struct of a column."""
    if isinstance(value, dict):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    return [drop_nulls(item) for item in value] if isinstance(value, list) else value


def load_json(text: str) -> Any:
    """Return the JSON value of a text, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def load_list(text: str) -> list[Any] | None:
    """Return the JSON list of a text, or None if it is not one."""
    value = load_json(text)
    return value if isinstance(value, list) else None
