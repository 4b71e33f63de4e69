"""Files of findings, one for each kind, that ``data.exclude`` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rm_ray.audit.findings import Finding
from rm_ray.storage import Storage

FOLDER = "exclude"
"""Folder of the files, in that of the audit."""

NUM_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class WrittenFindings:
    """The findings of one kind, in a file."""

    kind: str
    file: str
    by_source: dict[str, int]
    examples: tuple[Finding, ...]
    """The first ones."""

    @property
    def count(self) -> int:
        """Number of findings."""
        return sum(self.by_source.values())

    def to_json(self, num_rows: int) -> dict[str, Any]:
        """Return the part of the report; ``num_rows`` are all rows that were read."""
        return {
            "rows": self.count,
            "share": self.count / num_rows if num_rows else 0.0,
            "by_source": self.by_source,
            "file": self.file,
            "examples": [vars(finding) for finding in self.examples],
        }


def file_of(kind: str) -> str:
    """Return the file of a kind's findings, in the folder of the audit."""
    return f"{FOLDER}/{kind}.jsonl"


def write_findings(folder: Storage, kind: str, findings: Iterable[Finding]) -> WrittenFindings:
    """Write findings of one kind, one a line, while they are found."""
    by_source: Counter[str] = Counter()
    examples: list[Finding] = []

    def lines() -> Iterator[str]:
        found = iter(findings)
        for finding in islice(found, NUM_EXAMPLES):
            examples.append(finding)
            by_source[finding.source] += 1
            yield finding.to_json_line()
        for finding in found:
            by_source[finding.source] += 1
            yield finding.to_json_line()

    name = file_of(kind)
    folder.write_pieces(name, lines())
    return WrittenFindings(
        kind=kind, file=folder.join(name), by_source=dict(by_source), examples=tuple(examples)
    )
