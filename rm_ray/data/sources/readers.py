"""A fragment -> its rows as JSON text, with one reader per format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rm_ray.data.sources import planted, synthetic
from rm_ray.data.sources.columnar_rows import count_arrow, open_parquet, read_arrow, read_parquet
from rm_ray.data.sources.csv_rows import read_csv
from rm_ray.data.sources.decompression import open_bytes
from rm_ray.data.sources.encodings import BOM
from rm_ray.data.sources.fragments import FileKind, Fragment
from rm_ray.data.sources.json_rows import count_json, read_json
from rm_ray.data.sources.raw_json import encode_row
from rm_ray.data.sources.stored_datasets import load_dataset, read_dataset

BUILTIN_SPLITS = {**synthetic.SPLITS, **planted.SPLITS}
"""Rows per split of the built-in data."""


def generate_builtin(split: str) -> Iterator[dict[str, Any]]:
    """Yield the raw rows of a built-in split."""
    if split in planted.SPLITS:
        return planted.generate_rows(split)
    return synthetic.generate_pairs(split)


def read_rows(fragment: Fragment) -> Iterator[tuple[int, str]]:
    """Yield ``(row, JSON text)`` in order; ``row`` counts from 0 and is the line in JSON Lines.

    Values without a JSON form are marked (see ``raw_json``).

    Raises:
        InputError: the file is malformed; names the line if there are lines.
    """
    if fragment.kind in ("jsonl", "json"):
        yield from read_json(fragment.location, ends_in_json=fragment.kind == "json")
        return
    for i, row in enumerate(_read_objects(fragment)):
        yield i, encode_row(row)


def _read_objects(fragment: Fragment) -> Iterator[dict[str, Any]]:
    kind, location = fragment.kind, fragment.location
    if kind == "builtin":
        return generate_builtin(fragment.split or "train")
    if kind in ("csv", "tsv"):
        return read_csv(location, "\t" if kind == "tsv" else ",")
    if kind == "parquet":
        return read_parquet(location)
    if kind == "arrow":
        return read_arrow(location)
    return read_dataset(fragment)


def count_rows(fragment: Fragment) -> int:
    """Return the number of rows, as cheaply as the format allows."""
    kind, location = fragment.kind, fragment.location
    if kind == "builtin":
        return BUILTIN_SPLITS[fragment.split or "train"]
    if kind in ("jsonl", "json"):
        return count_json(location, ends_in_json=kind == "json")
    if kind == "parquet":
        with open_parquet(location) as file:
            return int(file.metadata.num_rows)
    if kind == "arrow":
        return count_arrow(location)
    if kind in ("csv", "tsv"):
        return sum(1 for _ in _read_objects(fragment))
    return len(load_dataset(fragment))


_BEGINNINGS: dict[bytes, FileKind] = {
    b"PAR1": "parquet", b"ARROW1": "arrow", b"{": "json", b"[": "json"
}  # fmt: skip


def sniff_kind(path: str) -> FileKind | None:
    """Return the format that a file's first bytes reveal, or None if they do not.

    Raises:
        InputError: it cannot be read.
    """
    with open_bytes(path) as stream:
        head = stream.peek(64)[:64].removeprefix(BOM).lstrip()
    return next((kind for start, kind in _BEGINNINGS.items() if head.startswith(start)), None)
