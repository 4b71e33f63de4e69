"""Metrics of a run by step, saved in every checkpoint so that they resume with the weights."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

RecordKind = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Metrics of one kind at one step."""

    step: int
    kind: RecordKind
    episode: int
    """Pairs trained on so far."""
    hours: float
    """Hours spent on the run so far, over all attempts."""
    metrics: dict[str, float]
    timestamp: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Unix milliseconds."""


@dataclass
class History:
    """All records of a run, oldest first."""

    records: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Append a record."""
        self.records.append(record)

    def last(self, kind: RecordKind) -> dict[str, float]:
        """Return the newest metrics of a kind; empty if there are none."""
        return next((r.metrics for r in reversed(self.records) if r.kind == kind), {})

    def to_json_lines(self) -> str:
        """Return one JSON object per line."""
        return "".join(json.dumps(asdict(record)) + "\n" for record in self.records)

    @classmethod
    def from_json_lines(cls, lines: Iterable[str]) -> History:
        """Parse the output of ``to_json_lines``."""
        return cls([Record(**json.loads(line)) for line in lines if line.strip()])
