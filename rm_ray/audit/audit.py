"""The audit of preference data on Ray Data: rows to facts, facts to findings and a report."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayError

from rm_ray.audit.audit_sources import AuditSources
from rm_ray.audit.contamination.evaluation_sets import EvaluationSets
from rm_ray.audit.contamination.leaks import KIND as CONTAMINATED
from rm_ray.audit.contamination.leaks import LeakSpool
from rm_ray.audit.finding_files import WrittenFindings, file_of, write_findings
from rm_ray.audit.findings import Finding
from rm_ray.audit.repeats.matches import MOST_COMPARED
from rm_ray.audit.repeats.search import KINDS, RepeatSearch
from rm_ray.audit.row_facts import SCHEMA, read_block
from rm_ray.audit.suspects import KIND as MISLABELLED
from rm_ray.audit.tally import Tally
from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.cache.exclusions import Exclusions, find_places
from rm_ray.data.cache.quarantine import QUARANTINE
from rm_ray.data.rows.column_readings import (
    ColumnReading,
    refuse_lost_columns,
    refuse_missing_columns,
    sum_up,
)
from rm_ray.data.sources import mixture
from rm_ray.errors import InputError, find_final_error
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

PARTS = ".audit-parts"
"""Folder of the facts while the audit goes on."""

PROGRESS_EVERY_S = 5.0

_DETAILS = {
    "duplicates": "same prompt, responses and labels as row {row} of {origin}",
    "near_duplicates": "resembles row {row} of {origin}, similarity {score:.2f}",
    "contradictions": "row {row} of {origin} prefers the other response",
}


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found in the data, apart from the files of findings."""

    tally: Tally
    findings: tuple[WrittenFindings, ...]
    readings: tuple[ColumnReading, ...]
    sets: Mapping[str, int]
    """Rows of each evaluation set."""
    data_hash: str
    """Of the rows, as in the record of a run on them."""
    rules: ColumnRules
    """By which they were read."""
    leaks: Mapping[str, Mapping[str, int]]
    """Rows of the data by how they share prompts with each evaluation set."""
    num_open: int
    """Most rows that may have near duplicates which were not found."""
    num_examined: int | None = None
    """Rows whose labels models looked at; None without models."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report."""
        counted = self.tally.to_json()
        return {
            **counted,
            "findings": {each.kind: each.to_json(counted["rows_read"]) for each in self.findings},
            "evaluation_sets": {
                name: {"rows": rows, "shared_by": dict(self.leaks.get(name, {}))}
                for name, rows in self.sets.items()
            },
            "data_hash": self.data_hash,
            "column_rules": self.rules.key,
            "rows_with_unfound_near_duplicates": self.num_open,
            "rows_examined_by_models": self.num_examined,
            "readings": [reading.to_json() for reading in self.readings],
            "seconds": round(self.seconds, 1),
        }


def audit_data(sources: AuditSources, folder: Storage, *, similarity: float) -> Audit:
    """Read all rows on all CPUs of the cluster, and write the findings to a folder.

    Rows are read as training reads them, but are not tokenised, so that too long ones are audited
    too. Evaluation sets are held in memory.

    Raises:
        InputError: a source is damaged, or every row is refused.
    """
    began = time.monotonic()
    if folder.exists(PARTS):
        folder.delete(PARTS)
    for kind in (*KINDS, CONTAMINATED, MISLABELLED):
        folder.delete_file(file_of(kind))
    try:
        _write_parts(sources, folder)
        return _search(sources, folder, similarity, began)
    finally:
        if folder.exists(PARTS):
            folder.delete(PARTS)


def _search(sources: AuditSources, folder: Storage, similarity: float, began: float) -> Audit:
    """Count the facts, and search them for repeats, a part in memory at a time."""
    origins, sets = sources.origins, sources.sets
    tally = Tally()
    num_rows = sum(count for _, count in _list_parts(folder))
    with tempfile.TemporaryDirectory(prefix="rm_ray-audit-") as local:
        repeats = RepeatSearch(Path(local) / "repeats", num_rows)
        leaks = LeakSpool(Path(local) / "leaks.jsonl")
        folder.write_pieces(QUARANTINE, _scan(folder, origins, tally, repeats, leaks))
        readings = tuple(sum_up(origins[i], c) for i, c in sorted(tally.readings.items()))
        refuse_lost_columns(readings)
        refuse_missing_columns(sources.rules.columns, readings)
        if not tally.num_read:
            reasons = ", ".join(f"{n} {reason}" for reason, n in tally.refused.most_common())
            raise InputError(
                f"there is nothing to audit: all {tally.rows} rows were refused ({reasons}). See "
                f"{folder.join(QUARANTINE)}"
            )
        written = []
        for kind in KINDS:
            logger.info("looking for %s", kind.replace("_", " "))
            found = _describe(kind, repeats.find(kind, similarity), origins)
            written.append(write_findings(folder, kind, found))
        if repeats.num_open:
            logger.warning(
                "%s rows or fewer may have near duplicates that were not found: they resemble none "
                "of the %d rows that they were compared with, as rows of one template do",
                f"{repeats.num_open:,}",
                MOST_COMPARED,
            )
        if sets.rows:
            written.append(write_findings(folder, CONTAMINATED, leaks.findings()))
    return Audit(
        tally=tally,
        findings=tuple(written),
        readings=readings,
        sets=sets.rows,
        data_hash=sources.data_hash,
        rules=sources.rules,
        leaks=leaks.by_set,
        num_open=repeats.num_open,
        seconds=time.monotonic() - began,
    )


def _describe(
    kind: str, matches: Iterator[np.ndarray], origins: Sequence[str]
) -> Iterator[Finding]:
    """Yield the findings of matches."""
    for some in matches:
        places = (find_places(some[side]) for side in ("place", "other"))
        columns = [column.tolist() for both in places for column in both]
        for fragment, row, other, other_row, score in zip(
            *columns, some["score"].tolist(), strict=True
        ):
            if (origins[fragment], row) == (origins[other], other_row):
                continue  # its source is given twice: to exclude this row would exclude both
            detail = _DETAILS[kind].format(row=other_row, origin=origins[other], score=score)
            yield Finding(source=origins[fragment], row=row, kind=kind, score=score, detail=detail)


def _scan(
    folder: Storage,
    origins: Sequence[str],
    tally: Tally,
    repeats: RepeatSearch,
    leaks: LeakSpool,
) -> Iterator[str]:
    """Read all facts once, in order; yield the lines of the quarantine file."""
    progress = _Progress("counted")
    for name, count in _list_parts(folder):
        path = folder.join(f"{PARTS}/{name}")
        table = pq.read_table(path, filesystem=folder.filesystem, schema=SCHEMA)
        tally.add(table)
        is_refused = np.array([bool(reason) for reason in table["reason"].to_pylist()], dtype=bool)
        columns = ("fragment", "row", "reason", "detail", "raw")
        for row in table.select(columns).filter(pa.array(is_refused)).to_pylist():
            row = {"origin": origins[row.pop("fragment")], **row}
            yield json.dumps(row, ensure_ascii=False) + "\n"
        accepted = table.filter(pa.array(~is_refused))
        repeats.add(accepted)
        leaks.add(accepted, origins)
        progress.add(count)


class _Progress:
    """Rows that are done, logged every few seconds."""

    def __init__(self, what: str) -> None:
        self.rows = 0
        self._what = what
        self._began = self._reported = time.monotonic()

    def add(self, rows: int) -> None:
        self.rows += rows
        now = time.monotonic()
        if now - self._reported > PROGRESS_EVERY_S:
            self._reported = now
            speed = self.rows / (now - self._began)
            logger.info("%s rows %s · %.0f rows/s", f"{self.rows:,}", self._what, speed)


def _list_parts(folder: Storage) -> list[tuple[str, int]]:
    """Return the parts in order of their rows, and the number of rows that each has."""
    names = [entry.name for entry in folder.list(PARTS) if entry.name.endswith(".parquet")]
    return [(name, int(name.removesuffix(".parquet").split("-")[-1])) for name in names]


@dataclass(frozen=True)
class _Shared:
    """A reference to data that is too large to send with every task."""

    reference: ray.ObjectRef
    """The evaluation sets and the exclusions."""


@functools.lru_cache(maxsize=1)
def _unpack(shared: _Shared) -> tuple[EvaluationSets, Exclusions]:
    """Fetch them, once per process."""
    found: tuple[EvaluationSets, Exclusions] = ray.get(shared.reference)
    return found


def _write_part(
    batch: dict[str, np.ndarray],
    shared: _Shared,
    origins: Sequence[str],
    rules: ColumnRules,
    parts: Storage,
) -> dict[str, np.ndarray]:
    """Write the facts of a block of raw rows to a file; runs in a Ray Data task.

    A task that is repeated writes the same file.
    """
    table = read_block(batch, origins, rules, *_unpack(shared))
    first, row = (int(batch[name][0]) for name in ("fragment", "row"))
    name = f"part-{first:06d}-{row:012d}-{len(table)}.parquet"
    pq.write_table(table, parts.join(name), filesystem=parts.filesystem, compression="zstd")
    return {"rows": np.array([len(table)])}


def _write_parts(sources: AuditSources, folder: Storage) -> None:
    """Write the facts of all rows, on all CPUs of the cluster.

    Raises:
        InputError: a source is damaged, or the folder is on one machine of several.
    """
    parts = folder.folder(PARTS)
    parts.filesystem.create_dir(parts.path, recursive=True)
    dataset = mixture.to_ray_dataset(sources.selections).map_batches(
        _write_part,
        fn_kwargs={
            "shared": _Shared(ray.put((sources.sets, sources.exclusions))),
            "origins": sources.origins,
            "rules": sources.rules,
            "parts": parts,
        },
        batch_size=mixture.ROWS_PER_BLOCK,
    )
    progress = _Progress("read")
    try:
        for written in dataset.iter_rows():
            progress.add(int(written["rows"]))
    except RayError as error:
        raise find_final_error(error) or error from None
    seen = sum(count for _, count in _list_parts(folder))
    if seen != (rows := progress.rows):
        raise InputError(
            f"{rows - seen:,} of {rows:,} rows were read on other machines, which wrote what they "
            f"found to another {folder.path}; --output must be a folder or URI that every machine "
            "reaches"
        )
