"""The quarantine file: all refused rows with their reasons and raw text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.storage import Storage

QUARANTINE = "quarantine.jsonl"

_COLUMNS = ("fragment", "row", "reason", "detail", "raw")


def write_quarantine(written: Sequence[TokenParts], folder: Storage) -> Counter[str]:
    """Write the refused rows of a build as JSON Lines; return the number of rows by reason."""
    refused: Counter[str] = Counter()
    with folder.filesystem.open_output_stream(folder.join(QUARANTINE)) as file:
        for parts in written:
            for row in _refused_rows(parts):
                refused[row["reason"]] += 1
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
    return refused


def _refused_rows(parts: TokenParts) -> Iterator[dict[str, Any]]:
    for batch in parts.scan(_COLUMNS, refused=True):
        for row in batch.to_pylist():
            yield {"origin": parts.origins[row.pop("fragment")], **row}
