"""The Parquet parts of a token cache: schema and scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.dataset as pads

from rm_ray.data.cache.group_columns import PER_COMPARISON
from rm_ray.data.cache.overlap import KEY_BYTES
from rm_ray.storage import Storage

ROWS_PER_BATCH = 1_024

SCHEMA = pa.schema(
    {
        "fragment": pa.int32(),
        "row": pa.int64(),
        "source": pa.string(),
        "prefix_length": pa.int32(),
        "prompt_length": pa.int32(),
        "ids": pa.list_(pa.list_(pa.int32())),
        "score": pa.list_(pa.float32()),
        **{name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in PER_COMPARISON.items()},
        "reason": pa.string(),
        "detail": pa.string(),
        "raw": pa.string(),
        "reading": pa.string(),
        "group_hash": pa.binary(KEY_BYTES),
        "prompt_hash": pa.binary(KEY_BYTES),
        "response_hashes": pa.list_(pa.binary(KEY_BYTES)),
    }
)
"""A row of the token cache: a group's token ids, labels and reading, or, if ``reason`` is not
empty, a refused raw row. ``ids`` are whole conversations, the hashes those of ``hash_group``."""

TABLE_COLUMNS = SCHEMA.names[: SCHEMA.names.index("reason")]


@dataclass(frozen=True, kw_only=True)
class TokenParts:
    """The Parquet parts of a token cache, on any storage."""

    key: str
    parts: Storage
    origins: tuple[str, ...]
    """Origins of the fragments, indexed by the ``fragment`` column."""

    def scan(self, columns: Sequence[str], *, refused: bool) -> Iterator[pa.RecordBatch]:
        """Yield batches of these columns of the accepted or the refused rows."""
        dataset = pads.dataset(
            self.parts.path, filesystem=self.parts.filesystem, format="parquet", schema=SCHEMA
        )
        is_refused = pads.field("reason") != ""
        yield from dataset.scanner(
            columns=list(columns),
            filter=is_refused if refused else ~is_refused,
            batch_size=ROWS_PER_BATCH,
            batch_readahead=2,
            fragment_readahead=1,
        ).to_batches()
