"""A finding about a row of the data, and files of findings that ``data.exclude`` takes."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a row, or may be."""

    source: str
    """Origin of the row, as in quarantine files: the file, or the dataset with its split."""

    row: int
    """Number of the row in its source, from 0, as in quarantine files."""

    kind: str
    """What was found, which also names the file of such findings: ``duplicates``."""

    score: float
    """How sure or how bad it is; higher is worse. Comparable within a kind only."""

    detail: str = ""
    """What a person needs to check it, such as the row that it repeats."""

    def to_json_line(self) -> str:
        """Return a line of a file for ``data.exclude``."""
        line = {
            "origin": self.source,
            "row": self.row,
            "reason": self.kind,
            "score": round(self.score, 4),
            "detail": self.detail,
        }
        return json.dumps(line, ensure_ascii=False) + "\n"
