"""The metrics of a run, step by step: kept with the weights, so that both resume together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

RecordKind = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Metrics of one kind at one step; ``timestamp`` in milliseconds since 1970."""

    step: int
    kind: RecordKind
    episode: int
    """Pairs trained on until then."""
    hours: float
    """Time spent on the run until then, over all its attempts."""
    metrics: dict[str, float]
    timestamp: int = field(default_factory=lambda: time.time_ns() // 1_000_000)


@dataclass
class History:
    """All records of a run, oldest first."""

    records: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Append a record."""
        self.records.append(record)

    def last(self, kind: RecordKind) -> dict[str, float]:
        """Return the newest metrics of a kind; empty where there are none."""
        return next((r.metrics for r in reversed(self.records) if r.kind == kind), {})

    def to_json_lines(self) -> str:
        """Write one JSON object a line."""
        return "".join(json.dumps(asdict(record)) + "\n" for record in self.records)

    @classmethod
    def from_json_lines(cls, lines: Iterable[str]) -> History:
        """Read what ``to_json_lines`` wrote."""
        return cls([Record(**json.loads(line)) for line in lines if line.strip()])
