"""Files of rows for tests, and what is read of them."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rm_ray.data.sources.discovery import discover, locate
from rm_ray.data.sources.fragments import Fragment
from rm_ray.data.sources.mixture import Selection, select
from rm_ray.data.sources.readers import count_rows, read_rows
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.errors import InputError

Row = dict[str, Any]

SEPARATORS = "a\u2028b\x85c\u2029d\x0be\x1cf"

ROWS: list[Row] = [
    {"prompt": 'Say "so",\n;then\tgo', "chosen": f"é {SEPARATORS}", "rejected": " no "},
    {"prompt": None, "chosen": "[1, 2]", "rejected": "x" * 5_000},
] * 2


def json_lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_arrow(rows: list[Row], *, stream: bool) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def as_parquet(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


def as_zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


FILES = {
    ".jsonl": json_lines(ROWS),
    ".ndjson": json_lines(ROWS),
    ".json": json.dumps(ROWS, indent=2).encode(),
    ".csv": as_csv(ROWS),
    ".tsv": as_csv(ROWS, "\t"),
    ".parquet": as_parquet(ROWS),
    ".arrow": as_arrow(ROWS, stream=False),
}

CODECS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": as_zstd,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def pairs(name: str, count: int = 2) -> bytes:
    return json_lines([{"chosen": f"{name} {i}", "rejected": "no"} for i in range(count)])


def read(text: str | Path) -> list[Row]:
    source = locate(SourceSpec.parse(str(text)))
    rows = [json.loads(row) for fragment in source.fragments for _, row in read_rows(fragment)]
    assert sum(map(count_rows, source.fragments)) == len(rows)
    return rows


def chosen_in(text: str | Path) -> list[str]:
    return sorted({row["chosen"].split()[0] for row in read(text)})


def error_of(text: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    return str(caught.value)


def rows_of(count: int, name: str = "") -> list[Row]:
    return [{"chosen": f"{name} so {i} é", "rejected": f"{name} no {i}"} for i in range(count)]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def save_dataset(path: Path, **splits: Sequence[Row]) -> Path:
    parts = {name: datasets.Dataset.from_list(list(rows)) for name, rows in splits.items()}
    (parts[""] if "" in parts else datasets.DatasetDict(parts)).save_to_disk(str(path))
    return path


def fragments_of(text: str | Path) -> list[Fragment]:
    return discover(SourceSpec.parse(str(text)))


def selected(*texts: str | Path, seed: int = 0) -> list[Selection]:
    return select([SourceSpec.parse(str(text)) for text in texts], seed)


def ordinals(selections: Sequence[Selection]) -> list[list[int]]:
    return [[] if s.rows is None else s.rows.tolist() for s in selections]


def message_of_wrong(*texts: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        for selection in selected(*texts):
            list(read_rows(selection.fragment))
    return str(caught.value)
