"""A row of any source as JSON text, in which what JSON cannot hold is marked, never described.

A reader yields rows as JSON text. A value that is not text must not become text on the way: a
timestamp or an image in a conversation would be trained on as the words that describe it. Such a
value becomes ``{"__not_json__": type name, "shown": short repr}``; a row's parser asks
``foreign_type`` and refuses it by its name where it is part of a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa

NOT_JSON = "__not_json__"
"""Key that marks a value without a JSON form; it holds the name of the value's type."""

LONGEST_SHOWN = 80

_FILE = "image, audio or other file"

Mend = Callable[[Any], Any]


def encode_row(row: Any) -> str:
    """Write a row as JSON text; NaN stays ``NaN``, which Python's ``json`` reads."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_replace)
    except TypeError:  # a key that is no text, as of a map
        return json.dumps(_with_text_keys(row), ensure_ascii=False, default=_replace)


def mark(type_name: str, shown: str) -> dict[str, str]:
    """Return what stands for a value that has no JSON form."""
    return {NOT_JSON: type_name, "shown": shown[:LONGEST_SHOWN]}


def foreign_type(value: Any) -> str | None:
    """Return the type name of a value that had no JSON form where it was read; None for others."""
    if isinstance(value, dict) and NOT_JSON in value:
        return str(value[NOT_JSON])
    return None


def arrow_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield a batch's rows as plain values, without decoding what a file is made of.

    JSON columns become what their text says; a file (a struct of ``bytes`` and ``path``, as image
    and audio columns have) and a value that Python cannot hold are marked.
    """
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values, mend = _values(column), _mend(column.type)
        columns[name] = values if mend is None else list(map(mend, values))
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, ImportError):  # bytes that are no text, a far date
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, ImportError) as error:
        return mark(str(scalar.type), str(error))


def _mend(kind: pa.DataType) -> Mend | None:
    """Return what turns a value of an Arrow type into plain values; None where it is one."""
    if isinstance(kind, pa.JsonType):
        return _read_json
    if pa.types.is_struct(kind):
        if {field.name for field in kind} == {"bytes", "path"}:
            return _mark_file
        parts = {field.name: mend for field in kind if (mend := _mend(field.type))}
        return _mend_struct(parts) if parts else None
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        part = _mend(kind.value_type)
        return part and _mend_list(part)
    return None


def _mend_struct(parts: dict[str, Mend]) -> Mend:
    def mend(value: Any) -> Any:
        if not isinstance(value, dict) or foreign_type(value):
            return value
        return {k: parts[k](v) if k in parts else v for k, v in value.items()}

    return mend


def _mend_list(part: Mend) -> Mend:
    return lambda value: [part(v) for v in value] if isinstance(value, list) else value


def _read_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _mark_file(value: Any) -> Any:
    if value is None or foreign_type(value):
        return value
    content, path = value["bytes"], value["path"]
    return mark(_FILE, str(path) if path else f"{len(content or b'')} bytes")


def _replace(value: Any) -> Any:
    """Return the JSON form of a value that ``json`` does not know, or its mark."""
    if isinstance(value, Decimal):
        is_whole = value.is_finite() and value == value.to_integral_value()
        return int(value) if is_whole else float(value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return mark("bytes", repr(value[:LONGEST_SHOWN]))
    return mark(type(value).__name__, repr(value))


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {k if isinstance(k, str) else repr(k): _with_text_keys(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_keys(v) for v in value]
    return value
