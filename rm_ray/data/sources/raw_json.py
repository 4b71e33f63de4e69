"""Rows as JSON text, with marks in place of values that have no JSON form.

A timestamp or an image in a conversation must not become text, or training would use the words that
describe it. Such a value becomes ``{"__not_json__": type name, "shown": short repr}``. The row
parser recognises it with ``foreign_type``, and refuses it by type if it is part of a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow as pa

NOT_JSON = "__not_json__"
"""Key that marks a value without a JSON form; its value is the type name."""

LONGEST_SHOWN = 80

_FILE = "image, audio or other file"

Converter = Callable[[Any], Any]


def encode_row(row: Any) -> str:
    """Return a row as JSON text; NaN is written as ``NaN``, which Python's ``json`` reads."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_to_json_form)
    except TypeError:  # a key that is not text, as in an Arrow map
        return json.dumps(_with_text_keys(row), ensure_ascii=False, default=_to_json_form)


def mark(type_name: str, shown: str) -> dict[str, str]:
    """Return the mark for a value without a JSON form."""
    return {NOT_JSON: type_name, "shown": shown[:LONGEST_SHOWN]}


def foreign_type(value: Any) -> str | None:
    """Return the type name of a marked value; None for any other."""
    if isinstance(value, dict) and NOT_JSON in value:
        return str(value[NOT_JSON])
    return None


def arrow_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield a batch's rows as plain Python values, without decoding embedded files.

    JSON columns are parsed. Embedded files (structs of ``bytes`` and ``path``, as in image and
    audio columns) and values that Python cannot represent are marked.
    """
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values, convert = _values(column), _find_converter(column.type)
        columns[name] = values if convert is None else list(map(convert, values))
    for row in zip(*columns.values(), strict=True):
        yield dict(zip(columns, row, strict=True))


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, ImportError):  # not UTF-8, or a far date
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (ValueError, OverflowError, KeyError, ImportError) as error:
        return mark(str(scalar.type), str(error))


def _find_converter(kind: pa.DataType) -> Converter | None:
    """Return a converter of an Arrow type to plain values; None if none is needed."""
    if isinstance(kind, pa.JsonType):
        return _read_json
    if pa.types.is_struct(kind):
        if {field.name for field in kind} == {"bytes", "path"}:
            return _mark_file
        parts = {field.name: convert for field in kind if (convert := _find_converter(field.type))}
        return _struct_converter(parts) if parts else None
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        part = _find_converter(kind.value_type)
        return part and _list_converter(part)
    return None


def _struct_converter(parts: dict[str, Converter]) -> Converter:
    def convert(value: Any) -> Any:
        if not isinstance(value, dict) or foreign_type(value):
            return value
        return {k: parts[k](v) if k in parts else v for k, v in value.items()}

    return convert


def _list_converter(part: Converter) -> Converter:
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


def _to_json_form(value: Any) -> Any:
    """Return the JSON form of a value that ``json`` cannot write, or its mark."""
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
