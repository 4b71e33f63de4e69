"""The quarantine file: all refused rows with their reasons and raw text."""

from __future__ import annotations

import json
from collections import Counter

from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.storage import Storage

QUARANTINE = "quarantine.jsonl"

_COLUMNS = ("fragment", "row", "reason", "detail", "raw")


def write_quarantine(parts: TokenParts, folder: Storage) -> Counter[str]:
    """Write the refused rows of a build as JSON Lines; return the number of rows by reason."""
    refused: Counter[str] = Counter()
    with folder.filesystem.open_output_stream(folder.join(QUARANTINE)) as file:
        for batch in parts.scan(_COLUMNS, refused=True):
            for row in batch.to_pylist():
                refused[row["reason"]] += 1
                line = {"origin": parts.origins[row.pop("fragment")], **row}
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    return refused
