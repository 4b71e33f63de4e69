"""Rows of JSON files, one per line or array element, read with bounded memory."""

from __future__ import annotations

import codecs
import io
import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

from rm_ray.config.column_rules import ALIASES
from rm_ray.data.rows.column_names import plain_name
from rm_ray.data.sources.decompression import open_bytes
from rm_ray.data.sources.encodings import BOM, explain_encoding, refuse_wide_text
from rm_ray.errors import InputError

LARGEST_ELEMENT = 1 << 26
"""Most characters of one array element that are held in memory."""

CHUNK = 1 << 20
"""Characters or bytes per read, and the most that layout detection looks at."""

_SPACE = " \t\r\n"
_ARRAY_RULE = (
    "rows must be an array of objects, an object with one such array, or one object per line"
)

JsonLayout = Literal["lines", "array", "object", "row"]


def read_json(path: str, *, ends_in_json: bool) -> Iterator[tuple[int, str]]:
    """Yield ``(row, JSON text)`` from a file of one object per line or of an array of objects.

    The contents decide which, since many ``.json`` files hold lines and some ``.jsonl`` files an
    array. In a ``.json`` file, the array may also be the only array of rows in an object, and an
    object with ``chosen`` is a single row. ``row`` is the line or the array index, from 0.

    Raises:
        InputError: it is none of these; names the line or the row.
    """
    with open_bytes(path) as stream:
        layout = _find_layout(path, stream, ends_in_json)
        if layout == "lines":
            for i, raw in _lines(stream):
                yield i, _check_json(raw, f"{path}, line {i + 1}")
        else:
            yield from _JsonText(path, stream).rows(layout)


def count_json(path: str, *, ends_in_json: bool) -> int:
    """Return the number of rows, without parsing the lines of JSON Lines."""
    with open_bytes(path) as stream:
        if _find_layout(path, stream, ends_in_json) == "lines":
            return sum(1 for _ in _lines(stream))
    return sum(1 for _ in read_json(path, ends_in_json=ends_in_json))


def _lines(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank; only a line feed ends a line."""
    for i, raw in enumerate(stream):
        line = raw.removeprefix(BOM)  # also in the middle of concatenated files
        if line.strip():
            yield i, line


def _find_layout(path: str, stream: io.BufferedReader, ends_in_json: bool) -> JsonLayout:
    refuse_wide_text(path, stream)
    head = stream.peek(CHUNK).lstrip()
    if head[:1] == b"[" and head[1:].lstrip()[:1] in (b"{", b"]", b""):
        return "array"
    if head[:1] != b"{" or not ends_in_json:
        return "lines"
    line, _, rest = head.partition(b"\n")
    row = _load(line)
    if row is None:
        return "row" if _is_pair(_load(head)) else "object"
    holds_rows = not rest.strip() and not _is_pair(row) and len(_arrays(row)) == 1
    return "object" if holds_rows else "lines"


def _load(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _arrays(row: dict[str, Any]) -> list[str]:
    """Return the keys whose values are arrays of rows."""
    return [k for k, v in row.items() if isinstance(v, list) and v and all(map(_is_row, v))]


def _is_row(value: Any) -> bool:
    """Return whether an array element is a pair, or any object but a message."""
    if not isinstance(value, dict):
        return False
    is_message = {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    return _is_pair(value) or not is_message


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and any(plain_name(k) in ALIASES["chosen"] for k in value)


class _DuplicateKeyError(Exception):
    """An object has a duplicate key, of which JSON readers silently keep the last."""


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; raise if it has duplicate keys."""
    built = dict(pairs)
    if len(built) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _DuplicateKeyError(f"the key {twice!r} occurs twice in one object; keep one of them")
    return built


def _check_json(raw: bytes, where: str) -> str:
    try:
        text = raw.decode()
        json.loads(text, object_pairs_hook=_reject_duplicates)
    except _DuplicateKeyError as error:
        raise InputError(f"{where}: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(explain_encoding(where, error)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: not valid JSON ({_reason(error)}); each line must be an object with "
            "'chosen' and 'rejected'"
        ) from None
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


class _JsonText:
    """JSON text that is read value by value, keeping only the current one in memory."""

    def __init__(self, path: str, stream: io.BufferedReader) -> None:
        self._path, self._stream = path, stream
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder(object_pairs_hook=_reject_duplicates)
        self._text, self._at, self._ended = "", 0, False

    def rows(self, layout: JsonLayout) -> Iterator[tuple[int, str]]:
        """Yield the elements of the array, of the object's only array of rows, or the object."""
        if layout == "array":
            yield from self._elements()
        elif layout == "row":
            yield 0, self._value("row 0")
        else:
            yield from self._members()
        if self._peek():
            raise self._error("it has text after its end")

    def _members(self) -> Iterator[tuple[int, str]]:
        """Yield the elements of an object's array of rows, recognised by its first element."""
        self._expect("{")
        found: list[str] = []
        has_empty = False
        while self._peek() != "}":
            name = str(json.loads(self._value("a key")))
            self._expect(":")
            if self._peek() != "[":
                self._value(f"'{name}'")
            else:
                elements = self._elements()
                first = next(elements, None)
                if first is None:
                    has_empty = True
                elif not _is_row(json.loads(first[1])):
                    deque(elements, maxlen=0)
                elif found:
                    both = f"'{found[0]}' and '{name}'"
                    raise self._error(f"it holds several arrays, {both}; keep only one")
                else:
                    found.append(name)
                    yield first
                    yield from elements
            if self._peek() != "}":
                self._expect(",")
        self._expect("}")
        if not found and not has_empty:
            raise self._error("it is an object without an array of rows")

    def _elements(self) -> Iterator[tuple[int, str]]:
        self._expect("[")
        row = 0
        while self._peek() != "]":
            yield row, self._value(f"row {row}")
            row += 1
            if self._peek() != "]":
                self._expect(",")
                if self._peek() == "]":
                    raise self._error(f"it has a comma after the last row ({row - 1})")
        self._expect("]")

    def _value(self, what: str) -> str:
        self._peek()
        while True:
            try:
                end = self._decoder.raw_decode(self._text, self._at)[1]
                if end < len(self._text) or self._ended:
                    break
            except _DuplicateKeyError as error:
                raise self._error(f"{what}: {error}") from None
            except (ValueError, RecursionError) as error:
                if self._ended or len(self._text) - self._at > LARGEST_ELEMENT:
                    reason = getattr(error, "msg", str(error))
                    raise self._error(f"{what}: not valid JSON ({reason})") from None
            self._read_more()
        value, self._at = self._text[self._at : end], end
        return value

    def _peek(self) -> str:
        """Skip whitespace; return the next character, or '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_more()

    def _expect(self, mark: str) -> None:
        if (found := self._peek()) != mark:
            raise self._error(
                f"expected '{mark}' instead of {found!r}" if found else "it is cut off"
            )
        self._at += 1

    def _read_more(self) -> None:
        kept = self._text[self._at :]
        raw = self._stream.read(max(CHUNK, len(kept)))  # doubling limits the retries
        self._ended = not raw
        try:
            self._text, self._at = kept + self._utf8.decode(raw, final=self._ended), 0
        except UnicodeDecodeError as error:
            raise InputError(explain_encoding(self._path, error)) from None

    def _error(self, reason: str) -> InputError:
        return InputError(f"{self._path} is not valid JSON for rows: {reason}; {_ARRAY_RULE}")
