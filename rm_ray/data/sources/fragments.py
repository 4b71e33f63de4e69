"""One piece that is read in order: a file, or a split of a dataset."""

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
"""The format of a file by its ending, which may be followed by one of ``CODECS``."""

CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}

ENDINGS = (
    ".jsonl, .jsonl.gz, .parquet, .json, .ndjson, .csv, .tsv or .arrow (any of them also as .gz, "
    ".zst, .bz2 or .xz)"
)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """One piece that is read in order: a file, or a split of a dataset."""

    kind: FileKind
    location: str
    split: str | None = None
    config: str | None = None
    """The configuration of a dataset on the Hub that has several."""

    @property
    def origin(self) -> str:
        """How tables and the quarantine file call it."""
        return ":".join(part for part in (self.location, self.config, self.split) if part)


def kind_of(path: str) -> FileKind | None:
    """Return the format of a file by the end of its name; None for an unknown one."""
    name = path.lower()
    for codec in CODECS:
        name = name.removesuffix(codec)
    return next((kind for ending, kind in FORMATS.items() if name.endswith(ending)), None)


def codec_of(path: str) -> str | None:
    """Return the compression of a file by the end of its name."""
    return next((c for ending, c in CODECS.items() if path.lower().endswith(ending)), None)
