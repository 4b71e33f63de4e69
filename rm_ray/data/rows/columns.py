"""The columns of a row and the part of a pair that each is read as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from rm_ray.config.column_rules import ALIASES, NO_RULES, ColumnRules
from rm_ray.data.rows.column_names import plain_name
from rm_ray.data.rows.values import is_blank


class RowColumns:
    """A row's columns; each is taken as a part, by name or by ``data.columns``, or left unused."""

    def __init__(self, row: dict[str, Any], rules: ColumnRules = NO_RULES) -> None:
        rules = _with_preference_input(row, rules)
        self._row, self._rules = row, rules
        self.names = tuple(row)
        if rules.ignore:
            self.names = tuple(name for name in row if name not in rules.ignore)
        self._by_part = _lay_out(self.names, rules)
        self.used: dict[str, str] = {}
        """The columns taken for each part, joined into one text."""
        self._paths: set[str] = set()

    def take(self, part: str, *, blank: bool = False) -> Any:
        """Take the first column that holds a part; return its value, or None if there is none.

        Blank values count only with ``blank``.
        """
        if part not in self._by_part and not self._rules.columns:
            return None
        for column, value in self.candidates(part):
            if blank or not is_blank(value):
                self.mark(part, column)
                return value
        return None

    def has(self, name: str) -> bool:
        """Return whether there is a column of exactly this name that is not blank."""
        return name in self.names and not is_blank(self._row[name])

    def take_named(self, part: str, name: str) -> Any:
        """Take a column of exactly this name for a part; return its value, or None."""
        if not self.has(name):
            return None
        self.mark(part, name)
        return self._row[name]

    def peek(self, part: str) -> Any:
        """Return the first value that is not null of the columns for a part, without taking it."""
        return next((value for _, value in self.candidates(part) if value is not None), None)

    def rename_used(self, origins: Mapping[str, str]) -> None:
        """Report taken columns under the names that they come from."""
        for part, columns in self.used.items():
            names = (origins.get(name, name) for name in columns.split("' and '"))
            self.used[part] = "' and '".join(dict.fromkeys(names))

    def is_mapped(self, part: str) -> bool:
        """Return whether the rules name a column for this part."""
        return part in self._rules.columns

    def candidates(self, part: str) -> Sequence[tuple[str, Any]]:
        """Return the columns that may hold a part, with their values, in order of preference."""
        path = self._rules.columns.get(part) if self._rules.columns else None
        if path is not None:
            found, value = follow_path(self._row, path)
            if found:
                return [(path, value)]
        names = self._by_part.get(part)
        return [(name, self._row[name]) for name in names] if names else ()

    def mark(self, part: str, column: str) -> None:
        """Record that a column was taken for a part."""
        before = self.used.get(part)
        self.used[part] = column if before is None else f"{before}' and '{column}"
        self._paths.add(column)

    @property
    def are_all_taken(self) -> bool:
        """Whether every column was taken entirely."""
        return self._paths.issuperset(self.names)

    def left(self) -> Iterator[tuple[str, Any]]:
        """Yield the unused columns that are not blank; of a partly used one, its unused values."""
        for name in self.names:
            if name in self._paths:
                continue
            inside = [p[len(name) + 1 :] for p in self._paths if p.startswith(f"{name}.")]
            if inside:
                others = _others(name, self._row[name], inside)
                yield from (each for each in others if each[0] not in self._rules.ignore)
            elif not is_blank(self._row[name]):
                yield name, self._row[name]


@lru_cache(maxsize=1_024)
def _lay_out(names: tuple[str, ...], rules: ColumnRules) -> dict[str, tuple[str, ...]]:
    """Return the columns that may hold each part, by name.

    Columns that the rules assign to a part are reserved for it. Cached, because most rows of a
    source have the same columns.
    """
    given = {path.split(".")[0] for path in rules.columns.values()}
    by_plain_name: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name != plain_name(name)):
        if name not in given:
            by_plain_name.setdefault(plain_name(name), name)
    named = {
        part: tuple(by_plain_name[alias] for alias in aliases if alias in by_plain_name)
        for part, aliases in ALIASES.items()
    }
    return {part: columns for part, columns in named.items() if columns}


def _with_preference_input(row: dict[str, Any], rules: ColumnRules) -> ColumnRules:
    """Add rules for the ``input`` of OpenAI's preference format, which holds messages and tools."""
    given = row.get("input")
    if not isinstance(given, dict) or "messages" not in given or "prompt" in rules.columns:
        return rules
    inside = {"prompt": "input.messages", **({"tools": "input.tools"} if "tools" in given else {})}
    return replace(rules, columns={**inside, **rules.columns})


def follow_path(row: Any, path: str) -> tuple[bool, Any]:
    """Follow a dotted path of names and list positions; return whether it exists, and its value.

    Names that contain dots take precedence.
    """
    if isinstance(row, dict) and path in row:
        return True, row[path]
    for point in (i for i, letter in enumerate(path) if letter == "."):
        found, inside = _step(row, path[:point])
        if found:
            return follow_path(inside, path[point + 1 :])
    return _step(row, path)


def _step(value: Any, name: str) -> tuple[bool, Any]:
    if isinstance(value, dict) and name in value:
        return True, value[name]
    if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        return True, value[int(name)]
    return False, None


def _others(name: str, value: Any, taken: list[str]) -> Iterator[tuple[str, Any]]:
    items: Iterator[tuple[str, Any]]
    if isinstance(value, dict):
        items = iter(value.items())
    else:
        items = ((str(i), item) for i, item in enumerate(value))
    for key, item in items:
        if key in taken or is_blank(item):
            continue
        inside = [path[len(key) + 1 :] for path in taken if path.startswith(f"{key}.")]
        if inside:
            yield from _others(f"{name}.{key}", item, inside)
        else:
            yield f"{name}.{key}", item
