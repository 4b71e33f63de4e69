"""Token caches for tests, as Ray Data leaves them."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rm_ray.data.cache.token_parts import SCHEMA, TokenParts
from rm_ray.storage import Storage

Row = dict[str, Any]

REFUSED: Row = {"reason": "empty", "detail": "no turns", "raw": "{}"}


def cache_row(
    fragment: int,
    row: int,
    chosen: Sequence[int],
    rejected: Sequence[int],
    *,
    prefix_length: int = 0,
    prompt_length: int = 0,
    margin: float = 0.0,
    source: str = "somewhere",
) -> Row:
    return {
        "fragment": fragment,
        "row": row,
        "source": source,
        "margin": margin,
        "prefix_length": prefix_length,
        "prompt_length": prompt_length,
        "chosen_ids": list(chosen),
        "rejected_ids": list(rejected),
        "reason": "",
    }


def make_parts(
    folder: Path, *files: Sequence[Row], origins: Sequence[str] = ("a", "b", "c")
) -> TokenParts:
    """Write a token cache as Ray Data does: Parquet files of rows in any order."""
    folder.mkdir(parents=True)
    for i, rows in enumerate(files):
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
        pq.write_table(pa.table(columns, schema=SCHEMA), folder / f"part-{i}.parquet")
    return TokenParts(key=uuid.uuid4().hex, parts=Storage.open(str(folder)), origins=tuple(origins))
