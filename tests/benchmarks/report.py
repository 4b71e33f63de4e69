"""How a benchmark says what it found: Markdown for people, and JSON in its last line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """A figure taken several times."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise the values."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1])

    def cell(self, form: str = ".2f") -> str:
        """Write it for a table."""
        return f"{self.median:{form}} ({self.least:{form}} to {self.most:{form}})"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def goal(title: str, value: float, least: float, form: str = ".2f") -> str:
    """Say whether a figure reaches the goal set for it."""
    verdict = "reached" if value >= least else "MISSED"
    return f"{title}: {value:{form}}; goal at least {least:{form}}: {verdict}"


def limit(title: str, value: float, most: float, form: str = ".2f") -> str:
    """Say whether a figure keeps to the limit set for it."""
    verdict = "kept" if value <= most else "EXCEEDED"
    return f"{title}: {value:{form}}; goal at most {most:{form}}: {verdict}"


def print_report(*parts: str, figures: Any) -> None:
    """Print paragraphs and tables, then all figures as one line of JSON."""
    print("\n\n".join([*parts, json.dumps(figures)]))
