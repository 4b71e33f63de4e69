"""A micro-batch <-> one Arrow row, its form between processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.plan import MicroBatch
from rm_ray.data.cache.group_columns import COLUMNS, GroupColumns

_NUMBERS = {
    "step": pa.int64(), "position": pa.int32(), "num_micro_batches": pa.int32(), "rank": pa.int32()
}  # fmt: skip
"""Scalar fields of ``MicroBatch``."""

_PLANNED = {"groups": pa.list_(pa.int64()), "weights": pa.list_(pa.float32())}
"""Array fields of ``MicroBatch``."""

SCHEMA = pa.schema(
    {
        **_NUMBERS,
        **_PLANNED,
        **{name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in COLUMNS.items()},
        "tokens": pa.list_(pa.int32()),
    }
)


def to_arrow(micro_batch: LoadedMicroBatch) -> pa.Table:
    """Return a micro-batch as a one-row table."""
    row: dict[str, Any] = {
        **{name: getattr(micro_batch.plan, name) for name in (*_NUMBERS, *_PLANNED)},
        **{name: getattr(micro_batch.columns, name) for name in COLUMNS},
        "tokens": micro_batch.tokens,
    }
    return pa.table({name: [value] for name, value in row.items()}, schema=SCHEMA)


def from_arrow(table: pa.Table) -> LoadedMicroBatch:
    """Return the micro-batch that ``to_arrow`` wrote; its arrays share the table's memory."""

    def array(name: str) -> np.ndarray:
        values: np.ndarray = table.column(name).combine_chunks().flatten().to_numpy()
        return values

    numbers: dict[str, Any] = {name: int(table.column(name)[0].as_py()) for name in _NUMBERS}
    planned: dict[str, Any] = {name: array(name) for name in _PLANNED}
    return LoadedMicroBatch(
        plan=MicroBatch(**numbers, **planned),
        columns=GroupColumns(**{name: array(name) for name in COLUMNS}),
        tokens=array("tokens"),
    )
