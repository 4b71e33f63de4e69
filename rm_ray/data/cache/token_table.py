"""The token cache as memory-mapped flat arrays, copied once to each machine."""

from __future__ import annotations

import functools
import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rm_ray.data.cache.pair_tokens import PairLengths, PairTokens
from rm_ray.data.cache.token_parts import TABLE_COLUMNS, TokenParts
from rm_ray.local_home import local_home

logger = logging.getLogger(__name__)

_COLUMNS = {
    "start": np.int64,
    "chosen_length": np.int32,
    "rejected_length": np.int32,
    "prefix_length": np.int32,
    "prompt_length": np.int32,
    "margin": np.float32,
    "source": np.int32,
    "fragment": np.int32,
    "row": np.int64,
}


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """Token ids of N pairs, ordered by fragment and row; each column is a mapped ``[N]`` array.

    A pair occupies ``tokens`` from ``start`` on: its chosen ids, then its rejected ids without the
    shared prefix, so each distinct token is stored once.
    """

    tokens: np.ndarray
    start: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray
    prefix_length: np.ndarray
    prompt_length: np.ndarray
    margin: np.ndarray
    source: np.ndarray
    fragment: np.ndarray
    row: np.ndarray
    sources: tuple[str, ...]
    origins: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.start)

    @property
    def lengths(self) -> PairLengths:
        """Token counts of all pairs."""
        return PairLengths(
            chosen=self.chosen_length, rejected=self.rejected_length, prefix=self.prefix_length
        )

    def gather(self, pairs: np.ndarray) -> PairTokens:
        """Read the token ids of these pairs, in the given order."""
        lengths = self.lengths[pairs]
        runs = [
            self.tokens[start : start + length]
            for start, length in zip(self.start[pairs], lengths.distinct, strict=True)
        ]
        return PairTokens(tokens=np.concatenate(runs), lengths=lengths)

    def pair_id(self, pair: int) -> str:
        """Return the place a pair was read from, as ``origin:row``."""
        return f"{self.origins[self.fragment[pair]]}:{self.row[pair]}"


def write_table(batches: Iterable[pa.RecordBatch], origins: Sequence[str], folder: Path) -> None:
    """Write cache rows, in any order, as flat arrays; the folder appears only when complete."""
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    try:
        _write_draft(batches, origins, draft)
        with suppress(OSError):  # another process on this machine was first
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if not folder.is_dir():
        raise OSError(f"could not move the token table to {folder}")


def _write_draft(batches: Iterable[pa.RecordBatch], origins: Sequence[str], draft: Path) -> None:
    names: dict[str, int] = {}
    columns: dict[str, list[np.ndarray]] = {name: [np.empty(0, t)] for name, t in _COLUMNS.items()}
    position = 0
    with (draft / "tokens.bin").open("wb") as file:
        for batch in batches:
            if not len(batch):
                continue
            arrays = _column_arrays(batch, names)
            sizes = arrays["chosen_length"] + arrays["rejected_length"] - arrays["prefix_length"]
            arrays["start"] = position + np.cumsum(sizes, dtype=np.int64) - sizes
            position += int(sizes.sum())
            for name, array in arrays.items():
                columns[name].append(array.astype(_COLUMNS[name]))
            file.write(_distinct_tokens(batch, arrays["prefix_length"]))
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.lexsort((whole["row"], whole["fragment"]))
    for name, array in whole.items():
        np.save(draft / f"{name}.npy", array[order])
    names_of = {"sources": list(names), "origins": list(origins)}
    (draft / "names.json").write_text(json.dumps(names_of))


def _column_arrays(batch: pa.RecordBatch, names: dict[str, int]) -> dict[str, np.ndarray]:
    """Return all columns but the ids; ``names`` numbers the sources in order of appearance."""
    arrays = {
        name: batch.column(name).to_numpy()
        for name in _COLUMNS.keys() & set(TABLE_COLUMNS) - {"source"}
    }
    for side in ("chosen", "rejected"):
        arrays[f"{side}_length"] = batch.column(f"{side}_ids").value_lengths().to_numpy()
    source = [names.setdefault(name, len(names)) for name in batch.column("source").to_pylist()]
    return {**arrays, "source": np.array(source)}


def _distinct_tokens(batch: pa.RecordBatch, prefix_lengths: np.ndarray) -> bytes:
    """Return each pair's chosen ids and its rejected ids after the prefix, as int32 bytes."""
    parts = []
    for i, prefix in enumerate(prefix_lengths):
        parts.append(batch.column("chosen_ids")[i].values.to_numpy())
        parts.append(batch.column("rejected_ids")[i].values.to_numpy()[prefix:])
    return np.concatenate(parts).astype(np.int32).tobytes()


def open_table(cache: TokenParts) -> TokenTable:
    """Map a cache's pairs into memory, copying them to this machine if needed.

    A damaged copy (missing or truncated files, as after a temp cleaner) is replaced.
    """
    folder = local_home() / "tables" / cache.key
    if folder.is_dir():
        try:
            return map_table(folder)
        except (OSError, ValueError) as error:
            logger.warning("token table %s is damaged; rebuilding it: %s", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    write_table(cache.scan(TABLE_COLUMNS, refused=False), cache.origins, folder)
    return map_table(folder)


@functools.lru_cache(maxsize=4)
def map_table(folder: Path) -> TokenTable:
    """Map a folder that ``write_table`` wrote.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    names = json.loads((folder / "names.json").read_text())
    path = folder / "tokens.bin"
    empty = not path.stat().st_size
    tokens = np.empty(0, np.int32) if empty else np.memmap(path, dtype=np.int32, mode="r")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _COLUMNS}
    table = TokenTable(
        tokens=tokens, sources=tuple(names["sources"]), origins=tuple(names["origins"]), **arrays
    )
    num_tokens = int(table.lengths.distinct.sum())
    if num_tokens != len(tokens):
        raise ValueError(f"tokens.bin has {len(tokens)} tokens, expected {num_tokens}")
    return table
