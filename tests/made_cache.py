"""Token caches for tests, as Ray Data leaves them."""

import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rm_ray.data.cache.token_parts import SCHEMA, TokenParts
from rm_ray.storage import Storage

Row = dict[str, Any]

NO_SCORE = math.nan
"""One object, so that rows without scores are equal."""

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
    """Return the row of a pair."""
    about = {"prefix_length": prefix_length, "prompt_length": prompt_length, "source": source}
    return group_row(fragment, row, [chosen, rejected], [(0, 1)], margin=[margin], **about)


def group_row(
    fragment: int,
    row: int,
    conversations: Sequence[Sequence[int]],
    comparisons: Sequence[tuple[int, int]] = (),
    **about: Any,
) -> Row:
    """Return the row of a group; ``comparisons`` are better and worse, and weigh the same."""
    count = len(comparisons)
    row_of_group = {
        "fragment": fragment,
        "row": row,
        "source": "somewhere",
        "prefix_length": 0,
        "prompt_length": 0,
        "ids": [list(ids) for ids in conversations],
        "score": [NO_SCORE] * len(conversations),
        "better": [better for better, _ in comparisons],
        "worse": [worse for _, worse in comparisons],
        "weight": [1 / count for _ in comparisons],
        "margin": [0.0] * count,
        "probability": [1.0] * count,
        "reason": "",
    }
    return row_of_group | about


def make_parts(
    folder: Path, *files: Sequence[Row], origins: Sequence[str] = ("a", "b", "c")
) -> TokenParts:
    """Write a token cache as Ray Data does: Parquet files of rows in any order."""
    folder.mkdir(parents=True)
    for i, rows in enumerate(files):
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
        pq.write_table(pa.table(columns, schema=SCHEMA), folder / f"part-{i}.parquet")
    return TokenParts(key=uuid.uuid4().hex, parts=Storage.open(str(folder)), origins=tuple(origins))
