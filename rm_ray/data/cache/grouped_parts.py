"""The Parquet parts of a token cache -> parts whose rows of one prompt form a group."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rm_ray.data.cache.group_columns import PER_COMPARISON
from rm_ray.data.cache.group_tokens import (
    GroupTokens,
    ragged_arange,
    shared_prefix_of_arrays,
    starts_of,
)
from rm_ray.data.cache.grouping import GroupLimits, PromptGroup, RowLabels, combine, divide
from rm_ray.data.cache.needs import find_lack
from rm_ray.data.cache.overlap import KEY_BYTES, join_keys
from rm_ray.data.cache.token_parts import SCHEMA, TABLE_COLUMNS, TokenParts
from rm_ray.data.cache.token_table import TokenTable, map_table, write_table
from rm_ray.data.rows.refusals import Reason

GROUPS_PER_FILE, TOKENS_PER_FILE = 8_192, 1 << 24
"""A file ends when it has as many groups or tokens."""

TOKENS_AT_ONCE = 1 << 20
"""Distinct tokens of the rows that are grouped together, unless those of one prompt have more."""


def write_grouped_parts(
    parts: TokenParts, grouped: TokenParts, limits: GroupLimits, entries: Sequence[int]
) -> None:
    """Write the accepted rows of ``parts`` again, those of one source and prompt as groups.

    ``entries`` say which entry of the settings each fragment belongs to. Rows are of one source if
    they are of one entry and name the same source or none. A group stands where its first row
    stood. Rows of groups that lack what ``limits`` need are written as refused.
    """
    grouped.parts.filesystem.create_dir(grouped.parts.path, recursive=True)
    folder = Path(tempfile.mkdtemp(prefix="rm_ray-grouping-"))
    try:
        write_table(parts.scan(TABLE_COLUMNS, refused=False), parts.origins, folder / "table")
        rows = _CachedRows.read(parts, map_table(folder / "table"), entries)
        for number, batch in enumerate(_files(rows.group(limits))):
            target = grouped.parts.join(f"part-{number:06d}.parquet")
            pq.write_table(_to_arrow(batch), target, filesystem=grouped.parts.filesystem)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _files(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Divide cache rows into files."""
    batch: list[dict[str, Any]] = []
    tokens = 0
    for row in rows:
        batch.append(row)
        tokens += sum(map(len, row.get("ids", ())))
        if tokens >= TOKENS_PER_FILE or len(batch) >= GROUPS_PER_FILE:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _to_arrow(batch: Sequence[dict[str, Any]]) -> pa.Table:
    """Return cache rows, whose ids are arrays, as a table."""
    groups = [row.get("ids", ()) for row in batch]
    conversations = [ids for group in groups for ids in group]
    tokens = np.concatenate([np.empty(0, np.int32), *conversations]).astype(np.int32, copy=False)
    inner = pa.ListArray.from_arrays(_offsets(conversations), pa.array(tokens))
    columns = {name: [row.get(name) for row in batch] for name in SCHEMA.names if name != "ids"}
    ids = pa.ListArray.from_arrays(_offsets(groups), inner)
    return pa.table({name: columns.get(name, ids) for name in SCHEMA.names}, schema=SCHEMA)


def _offsets(runs: Sequence[Sequence[Any]]) -> pa.Array:
    return pa.array(np.cumsum([0, *map(len, runs)]), type=pa.int32())


@dataclass(frozen=True, kw_only=True)
class _CachedRows:
    """The rows of a cache, in the order of their table, with the hashes that group them."""

    table: TokenTable
    group_keys: np.ndarray
    prompt_keys: np.ndarray
    response_keys: np.ndarray
    """``[R]``, by response."""
    readings: np.ndarray
    raw: np.ndarray
    """The raw text of rows that the objective needs more than, otherwise None."""
    entries: np.ndarray
    """By fragment."""

    @classmethod
    def read(cls, parts: TokenParts, table: TokenTable, entries: Sequence[int]) -> _CachedRows:
        """Read the hashes of all rows."""
        names = (
            "fragment", "row", "group_hash", "prompt_hash", "response_hashes", "reading", "raw"
        )  # fmt: skip
        batches = list(parts.scan(names, refused=False))
        fragment, row = (_column(batches, name) for name in ("fragment", "row"))
        order = np.lexsort((row, fragment))
        counts = np.concatenate(
            [np.zeros(0, np.int64), *(b["response_hashes"].value_lengths() for b in batches)]
        ).astype(np.int64)
        responses = join_keys(batch["response_hashes"].flatten() for batch in batches)
        return cls(
            table=table,
            group_keys=join_keys(batch["group_hash"] for batch in batches)[order],
            prompt_keys=join_keys(batch["prompt_hash"] for batch in batches)[order],
            response_keys=responses[ragged_arange(starts_of(counts)[order], counts[order])],
            readings=_texts(batches, "reading")[order],
            raw=_texts(batches, "raw")[order],
            entries=np.array(entries, dtype=np.int64),
        )

    def group(self, limits: GroupLimits) -> Iterator[dict[str, Any]]:
        """Yield the cache rows of all groups, and those of refused rows, in order."""
        for prompts in self._blocks():
            rows = np.concatenate(prompts)
            labels, tokens, first = self._labels(rows), self.table.gather(rows), 0
            for own in map(len, prompts):
                block = slice(first, first + own)
                for group in divide(labels[block], limits):
                    members = rows[block][group.rows].tolist()
                    built = self._build(group, labels[block], tokens, first)
                    lack = find_lack(built, limits.need)
                    if lack is None:
                        yield {**self._about(members[0]), **built}
                    else:
                        yield from (self._refuse(row, lack) for row in members)
                first += own

    def _blocks(self) -> Iterator[list[np.ndarray]]:
        """Yield the rows of each prompt, several prompts together."""
        sizes = self.table.lengths.distinct
        block: list[np.ndarray] = []
        tokens = 0
        for rows in self._by_prompt():
            own = int(sizes[rows].sum())
            if block and tokens + own > TOKENS_AT_ONCE:
                yield block
                block, tokens = [], 0
            block.append(rows)
            tokens += own
        if block:
            yield block

    def _by_prompt(self) -> list[np.ndarray]:
        """Return the rows of each source and prompt, in order of first appearance."""
        if not len(self.table):
            return []
        numbers = {name: number for number, name in enumerate(self.table.sources)}
        unnamed = np.array([numbers.get(origin, -1) for origin in self.table.origins])
        fragment, source = np.asarray(self.table.fragment), np.asarray(self.table.source)
        named = np.where(source == unnamed[fragment], -1, source)
        _, keys = np.unique(self.group_keys, return_inverse=True)
        whole = np.stack((self.entries[fragment], named, keys.reshape(-1)), axis=1)
        _, first, group = np.unique(whole, axis=0, return_index=True, return_inverse=True)
        appeared = first[group.reshape(-1)]
        order = np.argsort(appeared, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(appeared[order])) + 1)

    def _labels(self, rows: np.ndarray) -> list[RowLabels]:
        """Return the labels of these rows."""
        columns = self.table.columns[rows]
        responses = self.table.lengths.responses_of(rows)
        own = columns.length - np.repeat(columns.prompt_length, columns.num_responses)
        keys, tokens, scores = (
            values.tolist() for values in (self.response_keys[responses], own, columns.score)
        )
        compared = list(
            zip(*(getattr(columns, name).tolist() for name in PER_COMPARISON), strict=True)
        )
        found, r, c = [], 0, 0
        named = (columns.num_responses, columns.num_comparisons, columns.prompt_length)
        for num_responses, num_compared, prompt in zip(*(n.tolist() for n in named), strict=True):
            end, last = r + num_responses, c + num_compared
            found.append(
                RowLabels(
                    keys=tuple(keys[r:end]),
                    prompt=prompt,
                    tokens=tuple(tokens[r:end]),
                    comparisons=tuple(compared[c:last]),
                    scores=tuple(scores[r:end]),
                )
            )
            r, c = end, last
        return found

    def _build(
        self, group: PromptGroup, rows: Sequence[RowLabels], tokens: GroupTokens, first: int
    ) -> dict[str, Any]:
        """Return the cache row of a group of ``rows``, the first of which is in ``tokens``."""
        own = [rows[index] for index in group.rows]
        positions = {key: place for place, key in enumerate(group.places)}
        ids = [tokens.conversation(first + index, place) for index, place in group.places.values()]
        prompt = min(row.prompt for row in own)
        return {
            "prefix_length": shared_prefix_of_arrays(ids),
            "prompt_length": prompt,
            "ids": ids,
            **combine(own, positions).columns,
            "reason": "",
            "response_hashes": [key.ljust(KEY_BYTES, b"\0") for key in positions],
        }

    def _refuse(self, row: int, lack: str) -> dict[str, Any]:
        reason = str(Reason.NOTHING_TO_LEARN)
        return {**self._about(row), "reason": reason, "detail": lack, "raw": self.raw[row]}

    def _about(self, row: int) -> dict[str, Any]:
        """Return where a row comes from, and its hashes."""
        keys = {"group_hash": self.group_keys[row], "prompt_hash": self.prompt_keys[row]}
        return {
            "fragment": int(self.table.fragment[row]),
            "row": int(self.table.row[row]),
            "source": self.table.sources[self.table.source[row]],
            "reading": self.readings[row],
            **{name: bytes(key).ljust(KEY_BYTES, b"\0") for name, key in keys.items()},
        }


def _column(batches: Sequence[pa.RecordBatch], name: str) -> np.ndarray:
    parts = [batch[name].to_numpy() for batch in batches]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _texts(batches: Sequence[pa.RecordBatch], name: str) -> np.ndarray:
    same: dict[str | None, str | None] = {}  # most rows of a source share their reading
    texts = (text for batch in batches for text in batch[name].to_pylist())
    return np.array([same.setdefault(text, text) for text in texts], dtype=object)
