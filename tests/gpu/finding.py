"""What a part finds: rows of figures, each with a verdict where there is a goal, as Markdown."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from report import markdown_table

Values = dict[str, Any]
"""Cells of a row, by their columns."""

VERDICTS = {True: "kept", False: "**MISSED**", None: ""}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One row of one table."""

    table: str
    values: Values
    ok: bool | None = None
    """Whether it keeps to what is asked of it; none where nothing is."""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def attempt(
    table: str, labels: Values, measure: Callable[[], tuple[Values, bool | None]]
) -> Finding:
    """Return what was measured, or that it could not be; the rest of the part goes on.

    A setting may fail in ways nobody knows yet (no memory, no kernel, no compiler): all are rows.
    """
    try:
        values, ok = measure()
    except Exception as error:
        traceback.print_exc()
        return Finding(table=table, values={**labels, "failed": describe_error(error)}, ok=False)
    return Finding(table=table, values={**labels, **values}, ok=ok)


def guard(table: str, labels: Values, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield what is found until something fails, which is the last row then."""
    try:
        yield from findings
    except Exception as error:
        traceback.print_exc()
        yield Finding(table=table, values={**labels, "failed": describe_error(error)}, ok=False)


def describe_error(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    words = (str(error).strip() or "no message").splitlines()[0][:200]
    return f"{type(error).__name__}: {words}"


def render(findings: Sequence[Finding]) -> str:
    """Return the tables in the order in which they were begun."""
    titles = dict.fromkeys(finding.table for finding in findings)
    return "\n\n".join(
        f"{title}\n\n{_table([each for each in findings if each.table == title])}"
        for title in titles
    )


def _table(rows: Sequence[Finding]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    has_goal = any(row.ok is not None for row in rows)
    lines = (
        [cell(row.values.get(name, "")) for name in columns] + [VERDICTS[row.ok]] * has_goal
        for row in rows
    )
    return markdown_table([*columns, *["goal"] * has_goal], lines)


def cell(value: Any) -> str:
    """Write a figure as people read it: three digits that count, thousands set apart."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value == 0 or 0.001 <= abs(value) < 1000:
            return f"{value:.3g}"
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.2e}"
    return str(value).replace("|", "/").replace("\n", " ")


def missed(findings: Iterable[Finding]) -> int:
    """Return how many findings miss their goals."""
    return sum(finding.ok is False for finding in findings)
