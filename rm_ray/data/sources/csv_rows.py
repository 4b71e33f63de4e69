"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from rm_ray.config.column_rules import ALIASES
from rm_ray.data.rows.column_names import plain_name
from rm_ray.data.sources.decompression import open_bytes
from rm_ray.data.sources.encodings import explain_encoding, refuse_wide_text
from rm_ray.errors import InputError

_DELIMITERS = ",\t;|"

_SEPARATOR_LINE = re.compile(r'"?sep=([^\w"\r\n ])"?\s*', re.IGNORECASE)
"""Excel's line before the header, which names the delimiter."""

_QUOTED = re.compile(r'(?<![^,;\t| ])"(?:[^"]|"")*(?:"|$)')

_MISSING = frozenset(("", "nan", "NaN", "None", "null", "NULL", "<NA>", "NaT"))
"""Spellings of a missing cell, as pandas and others write and read them."""

_NUMBERS = frozenset((*ALIASES["margin"], *ALIASES["preference"], *ALIASES["scores"]))

_TRUTH = {"true": True, "false": False}

_LONGEST_CELL = 2**31 - 1
"""Characters; Python's default limit is shorter than some conversations."""


def read_csv(path: str, delimiter: str) -> Iterator[dict[str, str | float | None]]:
    """Yield the rows of a table with a header; cells are text, or None if missing.

    If the header does not contain ``delimiter`` but another usual one, that one is used: ``.csv``
    means different things in different countries. Excel's line ``sep=;`` takes precedence. These
    files have no types: margins, preferences and scores become numbers if possible, ties true or
    false.

    Raises:
        InputError: it is not such a table; names the line.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with open_bytes(path) as stream:
        refuse_wide_text(path, stream)
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        reader: Any = None
        try:
            before, first = _first_line(text)
            if separator := _SEPARATOR_LINE.fullmatch(first):
                more, first = _first_line(text)
                before += 1 + more
            outside = _QUOTED.sub("", first)
            delimiter = separator[1] if separator else _find_delimiter(outside, delimiter)
            is_spaced = f"{delimiter} " in outside
            lines = chain(repeat("\n", before), (first,), text)  # keeps the line numbers
            reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=is_spaced, strict=True)
            yield from _cells(path, reader)
        except UnicodeDecodeError as error:
            line = reader.line_num + 1 if reader else 1
            raise InputError(explain_encoding(f"{path}, line {line} or after", error)) from None
        except csv.Error as error:
            raise InputError(
                f"{path}, line {reader.line_num}: not a CSV row ({error}); put cells that "
                "contain commas, quotes or line ends in double quotes, and double any quote inside"
            ) from None


def _first_line(text: io.TextIOWrapper) -> tuple[int, str]:
    """Return the number of leading blank lines and the first line after them."""
    return next(((i, line) for i, line in enumerate(text) if line.strip()), (0, ""))


def _find_delimiter(header: str, usual: str) -> str:
    if usual in header:
        return usual
    return max(_DELIMITERS, key=header.count) if any(d in header for d in _DELIMITERS) else usual


def _cells(path: str, reader: Any) -> Iterator[dict[str, str | float | None]]:
    header = [name.strip() for name in next(filter(None, reader), [])]
    names = [name or f"column {i + 1}" for i, name in enumerate(header)]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise InputError(f"{path}: the header names the column '{twice[0]}' twice; rename one")
    places = {i: plain_name(name) for i, name in enumerate(names)}
    numbers = [i for i, name in places.items() if name in _NUMBERS]
    ties = [i for i, name in places.items() if name in ALIASES["tie"]]
    for cells in reader:
        if len(cells) > len(names):
            raise InputError(
                f"{path}, line {reader.line_num}: {len(cells)} cells under a header of "
                f"{len(names)}; put cells that contain commas or line ends in double quotes"
            )
        if cells:
            values: list[str | float | None] = [
                *(None if cell in _MISSING else cell for cell in cells),
                *[None] * (len(names) - len(cells)),
            ]
            for i in numbers:
                values[i] = _read_number(values[i])
            for i in ties:
                values[i] = _TRUTH.get(str(values[i]).strip().lower(), values[i])
            yield dict(zip(names, values, strict=True))


def _read_number(cell: str | float | None) -> str | float | None:
    """Return the number in a cell, None if blank, or any other cell as-is, to be refused later."""
    if cell is None or not str(cell).strip():
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if math.isfinite(number) else cell
