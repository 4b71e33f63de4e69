"""Fragments of a source, and the file formats they may have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FileKind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "hub", "saved", "builtin"]

FORMATS: dict[str, FileKind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File format by ending; one of ``CODECS`` may follow."""

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

ENDINGS = (
    ".jsonl, .jsonl.gz, .parquet, .json, .ndjson, .csv, .tsv or .arrow (any of them also as .gz, "
    ".zst, .bz2 or .xz)"
)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A piece of a source that is read in order: a file or a split of a dataset."""

    kind: FileKind
    location: str
    split: str | None = None
    config: str | None = None
    """Configuration of a Hub dataset that has several."""

    @property
    def origin(self) -> str:
        """Name of the fragment in tables and in the quarantine file."""
        return ":".join(part for part in (self.location, self.config, self.split) if part)


def kind_of(path: str) -> FileKind | None:
    """Return the format of a file by its ending, or None if unknown."""
    name = path.lower()
    for codec in CODECS:
        name = name.removesuffix(codec)
    return next((kind for ending, kind in FORMATS.items() if name.endswith(ending)), None)


def codec_of(path: str) -> str | None:
    """Return the compression of a file by its ending, or None if it has none."""
    return next((c for ending, c in CODECS.items() if path.lower().endswith(ending)), None)
