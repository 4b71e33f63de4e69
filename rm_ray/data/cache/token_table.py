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

from rm_ray.data.cache.group_columns import COLUMNS, PER_COMPARISON, GroupColumns
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens, ragged_arange, starts_of
from rm_ray.data.cache.token_parts import TABLE_COLUMNS, TokenParts
from rm_ray.local_home import local_home

logger = logging.getLogger(__name__)

_ROW_COLUMNS = {"start": np.int64, "source": np.int32, "fragment": np.int32, "row": np.int64}
"""Columns ``[N]`` besides those of ``GroupColumns``."""


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """Token ids of N groups, ordered by fragment and row; each column is a mapped array.

    A group occupies ``tokens`` from ``start`` on: its shared prefix, then the rest of each
    conversation, so each distinct token is stored once.
    """

    tokens: np.ndarray
    columns: GroupColumns
    start: np.ndarray
    source: np.ndarray
    fragment: np.ndarray
    row: np.ndarray
    sources: tuple[str, ...]
    origins: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.start)

    @property
    def lengths(self) -> GroupLengths:
        """Token counts of all groups."""
        return self.columns.lengths

    def gather(self, groups: np.ndarray) -> GroupTokens:
        """Read the token ids of these groups, in the given order."""
        return self.read(groups, self.lengths[groups])

    def read(self, groups: np.ndarray, lengths: GroupLengths) -> GroupTokens:
        """Read the token ids of these groups, whose lengths are known."""
        runs = [
            self.tokens[start : start + length]
            for start, length in zip(self.start[groups], lengths.distinct, strict=True)
        ]
        return GroupTokens(tokens=np.concatenate(runs), lengths=lengths)

    def group_id(self, group: int) -> str:
        """Return the place a group was read from, as ``origin:row``."""
        return f"{self.origins[self.fragment[group]]}:{self.row[group]}"


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
    kinds = {**COLUMNS, **_ROW_COLUMNS}
    columns: dict[str, list[np.ndarray]] = {name: [np.empty(0, t)] for name, t in kinds.items()}
    position = 0
    with (draft / "tokens.bin").open("wb") as file:
        for batch in batches:
            if not len(batch):
                continue
            arrays = _column_arrays(batch, names)
            groups = GroupColumns.of(arrays)
            sizes = groups.lengths.distinct
            arrays["start"] = position + starts_of(sizes)
            position += int(sizes.sum())
            for name, kind in kinds.items():
                columns[name].append(np.asarray(arrays[name]).astype(kind))
            file.write(_distinct_tokens(batch, groups))
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.lexsort((whole["row"], whole["fragment"]))
    ordered = vars(GroupColumns.of(whole)[order]) | {n: whole[n][order] for n in _ROW_COLUMNS}
    for name in kinds:
        np.save(draft / f"{name}.npy", ordered[name])
    names_of = {"sources": list(names), "origins": list(origins)}
    (draft / "names.json").write_text(json.dumps(names_of))


def _column_arrays(batch: pa.RecordBatch, names: dict[str, int]) -> dict[str, np.ndarray]:
    """Return all columns but the ids; ``names`` numbers the sources in order of appearance."""
    ids = batch.column("ids")
    plain = ("prefix_length", "prompt_length", "fragment", "row")
    source = [names.setdefault(name, len(names)) for name in batch.column("source").to_pylist()]
    return {
        **{name: batch.column(name).to_numpy() for name in plain},
        **{name: batch.column(name).flatten().to_numpy() for name in ("score", *PER_COMPARISON)},
        "num_responses": ids.value_lengths().to_numpy(),
        "num_comparisons": batch.column("better").value_lengths().to_numpy(),
        "length": ids.flatten().value_lengths().to_numpy(),
        "source": np.array(source),
    }


def _distinct_tokens(batch: pa.RecordBatch, groups: GroupColumns) -> bytes:
    """Return each group's first conversation and the others after the prefix, as int32 bytes."""
    conversations = batch.column("ids").flatten()
    lengths = groups.length.astype(np.int64)
    skipped = np.repeat(groups.prefix_length, groups.num_responses)
    skipped[groups.lengths.starts] = 0
    kept = ragged_arange(starts_of(lengths) + skipped, lengths - skipped)
    tokens: np.ndarray = conversations.flatten().to_numpy()[kept]
    return tokens.astype(np.int32).tobytes()


def open_table(cache: TokenParts) -> TokenTable:
    """Map a cache's groups into memory, copying them to this machine if needed.

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
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*COLUMNS, *_ROW_COLUMNS)
    }
    table = TokenTable(
        tokens=tokens,
        columns=GroupColumns(**{name: arrays[name] for name in COLUMNS}),
        **{name: arrays[name] for name in _ROW_COLUMNS},
        sources=tuple(names["sources"]),
        origins=tuple(names["origins"]),
    )
    num_tokens = int(table.lengths.distinct.sum())
    if num_tokens != len(tokens):
        raise ValueError(f"tokens.bin has {len(tokens)} tokens, expected {num_tokens}")
    return table
