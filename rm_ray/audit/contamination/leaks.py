"""Rows that share prompts with evaluation sets, on disk until they are written in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from rm_ray.audit.findings import Finding

KIND = "contaminated"


class LeakSpool:
    """The leaks of rows that are added in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.by_set: dict[str, Counter[str]] = {}

    def add(self, table: pa.Table, origins: Sequence[str]) -> None:
        """Add accepted rows, which have the schema of ``row_facts``."""
        lines = []
        columns = (table[name].to_pylist() for name in ("fragment", "row", "leaks"))
        for fragment, row, leaks in zip(*columns, strict=True):
            if not leaks:
                continue
            read: list[dict[str, Any]] = [json.loads(leak) for leak in leaks]
            for leak in read:
                self.by_set.setdefault(leak["name"], Counter())[leak["how"]] += 1
            finding = {
                "source": origins[fragment],
                "row": row,
                "score": max(leak["covered"] for leak in read),
                "detail": "; ".join(map(describe_leak, read)),
            }
            lines.append(json.dumps(finding) + "\n")
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def findings(self) -> Iterator[Finding]:
        """Yield one finding for each row that was added with leaks."""
        with self._path.open(encoding="utf-8") as file:
            for line in file:
                yield Finding(kind=KIND, **json.loads(line))


def describe_leak(leak: dict[str, Any]) -> str:
    """Return what a row shares with a prompt of an evaluation set."""
    where = f"row {leak['row']} of {leak['name']}"
    if leak["how"] == "prompt":
        return f"has the prompt of {where}"
    what = "a 13-gram" if leak["how"] == "13-gram" else "8-grams"
    return f"shares {what} with {where}, {leak['covered']:.0%} of whose words are in shared 8-grams"
