"""Rows of Parquet files and of Arrow IPC files and streams."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rm_ray.data.sources.decompression import open_bytes
from rm_ray.data.sources.raw_json import arrow_rows
from rm_ray.errors import InputError

ROWS_PER_BATCH = 1_024


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file.

    Raises:
        InputError: it is not a Parquet file, or damaged.
    """
    with _open_seekable(path) as file:
        try:
            yield pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is not a Parquet file or is damaged: {_first_line_of(error)}"
            ) from None


def read_parquet(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file."""
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
            yield from arrow_rows(batch)


def read_arrow(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow IPC file or stream."""
    for batch in _arrow_batches(path):
        for start in range(0, len(batch), ROWS_PER_BATCH):
            yield from arrow_rows(batch.slice(start, ROWS_PER_BATCH))


def count_arrow(path: str) -> int:
    """Return the number of rows of an Arrow IPC file or stream."""
    return sum(map(len, _arrow_batches(path)))


def _arrow_batches(path: str) -> Iterator[pa.RecordBatch]:
    with _open_seekable(path) as file:
        try:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                whole = pa.ipc.open_file(file)
                yield from map(whole.get_batch, range(whole.num_record_batches))
            else:
                yield from pa.ipc.open_stream(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"{path} is not an Arrow IPC file or stream, or is damaged: {_first_line_of(error)}"
            ) from None


@contextmanager
def _open_seekable(path: str) -> Iterator[IO[bytes]]:
    """Open a file for random access; a compressed one is first unpacked to disk."""
    with open_bytes(path) as stream:
        if stream.seekable():
            yield stream
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(stream, unpacked, 1 << 20)
            unpacked.seek(0)
            yield unpacked


def _first_line_of(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
