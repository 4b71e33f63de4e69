"""How the columns of a source were read; sources that would lose a column are refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rm_ray.config.column_rules import ALIASES
from rm_ray.data.rows.column_names import classify_path, plain_name
from rm_ray.errors import InputError

NO_ROWS: Mapping[str, int] = {}

MAX_NAMED = 24
"""Columns named in a line; any more are only counted."""

_NAMES_BETTER = re.compile(
    r"(?:.*_)?(?:winner(?:_.*)?|better_response_id|safer_response_id|overall_preference|preference|"
    r"preference_strength|labels?|choice)"
)


@dataclass(frozen=True, kw_only=True)
class ColumnReading:
    """How the rows of a source were read; all counts are rows."""

    origin: str
    rows: int = 0
    used: dict[str, dict[str, int]] = field(default_factory=dict)
    """Rows by part and column."""
    left: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    unwritten: dict[str, int] = field(default_factory=dict)
    unasked: int = 0
    """Rows without any turn before the responses."""
    forms: dict[str, int] = field(default_factory=dict)
    """Rows by the published form that they were read as."""
    reversals: dict[str, int] = field(default_factory=dict)
    """Rows by what says, unlike their labels, that the worse response is better."""
    first_reversals: dict[str, int] = field(default_factory=dict)
    """Number of the first such row, where it is known."""

    def to_json(self) -> dict[str, Any]:
        """Return the reading as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> ColumnReading:
        """Rebuild a reading from the result of ``to_json``."""
        return cls(**settings)

    def describe(self) -> str:
        """Return one line: the parts with their columns, then the unused columns."""
        parts = [
            f"{part} from {self._names(columns)}" for part, columns in sorted(self.used.items())
        ]
        by_kind: dict[str, dict[str, int]] = {"harmless": {}, "unknown": {}, "part": {}}
        for name, rows in self.left.items():
            by_kind["part" if name in self.lost else _kind(name)][name] = rows
        clauses = [f"published form {self._names(self.forms)}"] if self.forms else []
        clauses.append(", ".join(parts) or "nothing read")
        for kind, what in (
            ("harmless", "not used"),
            ("unknown", "not used, and rm_ray does not know what they hold"),
            ("part", "NOT USED, though they may hold part of the conversation"),
        ):
            if by_kind[kind]:
                clauses.append(f"{what}: {self._names(by_kind[kind])}")
        if self.unasked:
            where = "" if self.unasked == self.rows else f" in {self.unasked:,} rows"
            clauses.append(f"NO PROMPT{where}")
        clauses += self._doubts()
        if self.unwritten:
            clauses.append(f"not written by the chat template: {self._names(self.unwritten)}")
        return "; ".join(clauses)

    def _doubts(self) -> list[str]:
        """Return clauses if other columns say that the labels are wrong, or may say so."""
        chosen = [name for name in self.used.get("chosen", ()) if not _is_named_chosen(name)]
        tells = [name for name in self.left if _NAMES_BETTER.fullmatch(plain_name(name))]
        doubts = [f"THE REJECTED RESPONSE IS SAID TO BE BETTER {why}" for why in self._reversed()]
        if chosen and tells:
            doubts.append(
                f"'{chosen[0]}' IS CHOSEN IN EVERY ROW, and '{tells[0]}' may say otherwise"
            )
        return doubts

    def _reversed(self) -> Iterator[str]:
        for why, rows in self.reversals.items():
            first = self.first_reversals.get(why)
            example = "" if first is None else f", the first of them row {first}"
            yield f"in {rows:,} of {self.rows:,} rows ({why}{example})"

    def _names(self, counts: Mapping[str, int]) -> str:
        named = [
            f"'{name}'" + ("" if rows == self.rows else f" ({rows:,} of {self.rows:,} rows)")
            for name, rows in list(counts.items())[:MAX_NAMED]
        ]
        more = len(counts) - len(named)
        return ", ".join([*named, *([f"and {more} more"] if more else [])])


_GUESSES = (
    ("history", re.compile(r".*(?:history|turns|dialog|chat).*")),
    ("system", re.compile(r".*(?:system|persona|preamble).*")),
    ("tools", re.compile(r".*(?:tool|function).*")),
    ("documents", re.compile(r".*(?:context|doc|passage|article|paragraph|knowledge|evidence).*")),
)
"""Likely part of a column, by its name, in a row that has a prompt."""


def _guess_part(name: str, reading: ColumnReading) -> str:
    """Return the part that a column most likely holds; usually the prompt if none was read."""
    plain = plain_name(name)
    guess = next((part for part, names in _GUESSES if names.fullmatch(plain)), "prompt")
    has_prompt = "prompt" in reading.used
    return guess if has_prompt or guess in ("system", "tools") else "prompt"


def _is_named_chosen(name: str) -> bool:
    return re.search(r"chosen|prefer|accept|better|best|win|pos|good", name.lower()) is not None


def _kind(name: str) -> str:
    kind = classify_path(name)
    return "harmless" if kind == "part" else kind


def sum_up(
    origin: str, rows: Mapping[str, int], first_rows: Mapping[str, int] = NO_ROWS
) -> ColumnReading:
    """Sum up row readings, given as their JSON and the number of rows that share each.

    ``first_rows`` are the numbers of the first rows that have them.
    """
    used: dict[str, Counter[str]] = {}
    left: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    unwritten: Counter[str] = Counter()
    forms: Counter[str] = Counter()
    reversals: Counter[str] = Counter()
    first_reversals: dict[str, int] = {}
    total = unasked = 0
    for text, count in sorted(rows.items()):
        if not text:  # refused before it was read
            continue
        total += count
        parts, left_out, lost_ones, keys, has_prompt, form, *reversed_by = json.loads(text)
        unasked += 0 if has_prompt else count
        if form:
            forms[form] += count
        for reversal in reversed_by:
            reversals[reversal] += count
            if text in first_rows:
                first = first_reversals.get(reversal, first_rows[text])
                first_reversals[reversal] = min(first, first_rows[text])
        for part, column in parts.items():
            used.setdefault(part, Counter())[column] += count
        for counter, names in ((left, left_out), (lost, lost_ones), (unwritten, keys)):
            counter.update(dict.fromkeys(names, count))
    return ColumnReading(
        origin=origin,
        rows=total,
        used={part: dict(counts) for part, counts in used.items()},
        left=dict(left),
        lost=dict(lost),
        unwritten=dict(unwritten),
        unasked=unasked,
        forms=dict(forms),
        reversals=dict(reversals),
        first_reversals=first_reversals,
    )


def describe_all(readings: Sequence[ColumnReading]) -> list[str]:
    """Return one line per distinct reading; files that were read alike share a line."""
    origins: dict[str, list[str]] = {}
    for reading in readings:
        if reading.rows:
            origins.setdefault(reading.describe(), []).append(reading.origin)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {line}"
        for line, names in origins.items()
    ]


def refuse_lost_columns(readings: Iterable[ColumnReading], prefix: str = "data.") -> None:
    """Refuse sources with an unused column that seems to hold part of the conversation.

    Raises:
        InputError: names the source, the columns and the settings that help.
    """
    for reading in readings:
        lost = reading.lost
        if reading.unasked < reading.rows:  # some rows have a prompt: sources are names
            lost = {n: rows for n, rows in lost.items() if plain_name(n) not in ALIASES["source"]}
        if lost:
            names = reading._names(lost)
            first = next(iter(lost))
            raise InputError(
                f"{reading.origin}: {names} may hold part of the conversation, and would not be "
                f"trained on or scored (read: {_parts(reading)}). Name its part with "
                f"{prefix}columns (as in '{_guess_part(first, reading)}={first}'; only text "
                f"is read), or leave it out with {prefix}ignore_columns {' '.join(lost)}"
            )


def refuse_missing_columns(
    columns: Mapping[str, str], readings: Sequence[ColumnReading], prefix: str = "data."
) -> None:
    """Refuse a mapped column that no row of any source uses for its part.

    Raises:
        InputError: names the columns that the rows have.
    """
    seen: dict[str, set[str]] = {}
    for reading in readings:
        for part, counts in reading.used.items():
            seen.setdefault(part, set()).update(
                n for names in counts for n in names.split("' and '")
            )
    left = {name for reading in readings for name in reading.left}
    available = sorted(left.union(*seen.values()))
    for part, column in columns.items():
        if column not in seen.get(part, ()) and any(reading.rows for reading in readings):
            if column in available:
                raise InputError(
                    f"{prefix}columns reads {part} from '{column}', but no row uses it: its values "
                    f"are no {part}, or rows of this kind have none"
                )
            raise InputError(
                f"{prefix}columns reads {part} from '{column}', but no row has that column; "
                f"the columns with content are: {', '.join(available) or 'none'}"
            )


def _parts(reading: ColumnReading) -> str:
    return ", ".join(f"{part} from {reading._names(cols)}" for part, cols in reading.used.items())
