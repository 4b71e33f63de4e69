"""The output folder of scored rows: its file names, its manifest, and its contents.

A chunk is a series of consecutive rows of one file or split. Its rows are written atomically as one
file: a chunk with a file is finished, and rerunning the command scores the others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from rm_ray.config.column_rules import ColumnRules
from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.data.rows.column_readings import ColumnReading, sum_up
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import RewardStatistics
from rm_ray.storage import Storage

ROWS, REFUSED, READINGS = "rows", "quarantine", "readings"
"""Folders with one file per chunk: scored rows, refused rows, counts of how rows were read."""

MANIFEST = "scoring.json"
"""File that identifies the scored rows and the model."""

MODELS = "models.json"
"""File that says whose rewards the rows of an ensemble are."""

EVALUATIONS = "~/rm_ray/evaluations"
"""Parent of the default output folders."""

ROWS_PER_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """A folder of scored rows."""

    folder: Storage
    origins: tuple[str, ...]
    """Names of the fragments, by their numbers."""
    num_scored: int
    refused: dict[str, int]
    """Refused rows by reason."""
    rules: ColumnRules
    readings: tuple[ColumnReading, ...]
    """How the rows of each file or split were read."""
    statistics: RewardStatistics | None = None
    """Those by which one model's rewards are standardized; None if they are raw."""

    @classmethod
    def collect(cls, folder: Storage, origins: tuple[str, ...], rules: ColumnRules) -> ScoredRows:
        """Count a folder's rows, and merge its refused rows into one file."""
        refused: Counter[str] = Counter()

        def refused_lines(name: str) -> str:
            lines = read_lines(folder, f"{REFUSED}/{name}")
            refused.update(json.loads(line)["reason"] for line in lines)
            return "\n".join([*lines, ""])

        if names := list_chunks(folder, REFUSED):
            folder.write_pieces(f"{REFUSED}.jsonl", map(refused_lines, names))
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for name in list_chunks(folder, READINGS):
            counts[_fragment_of(name)].update(json.loads(folder.read_text(f"{READINGS}/{name}")))
        names = list_chunks(folder, ROWS)
        return cls(
            folder=folder,
            origins=origins,
            num_scored=sum(len(read_lines(folder, f"{ROWS}/{name}")) for name in names),
            refused=dict(refused.most_common()),
            rules=rules,
            readings=tuple(sum_up(origins[i], counted) for i, counted in sorted(counts.items())),
        )

    def origin_of(self, name: str) -> str:
        """Return the origin of a chunk's rows."""
        return self.origins[_fragment_of(name)]

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each scored row with its origin, in order."""
        for name in list_chunks(self.folder, ROWS):
            origin = self.origin_of(name)
            for line in read_lines(self.folder, f"{ROWS}/{name}"):
                yield origin, json.loads(line)


def chunk_name(fragment: int, chunk: int) -> str:
    """Return the file name of a chunk, the same in every folder."""
    return f"part-{fragment:05d}-{chunk:08d}.jsonl"


def _fragment_of(name: str) -> int:
    return int(name.split("-")[1])


def claim_folder(
    output: str | None, model: ScoringModel, rows: Rows, *, model_hash: str, rows_hash: str
) -> tuple[Storage, date]:
    """Return the output folder, and the date for its chat template.

    A new folder gets a manifest with today's date; a folder with scores keeps its date. Without
    ``output``, the folder is in ``EVALUATIONS`` and named after the hashes.

    Raises:
        InputError: the folder cannot be written, or has scores from another model, other rows or
            several models.
    """
    if rows.rules.are_set:
        read = json.dumps([rows_hash, rows.rules.key])
        rows_hash = hashlib.sha256(read.encode()).hexdigest()
    hashes = {"model": model_hash, "rows": rows_hash}
    name = "-".join(value[:8] for value in hashes.values())
    folder = Storage.open(output or f"{EVALUATIONS}/{name}")
    folder.check_writable("output")
    today = datetime.now().astimezone().date()
    manifest = {"settings": asdict(model), "rows_per_chunk": ROWS_PER_CHUNK,
                "template_date": today.isoformat(), **hashes}  # fmt: skip
    before, has_scores = folder.read_json(MANIFEST), bool(list_chunks(folder, ROWS))
    if folder.exists(MODELS) or (before is None and has_scores):
        raise InputError(
            f"--output '{folder.path}' has scores that are not of one model: it holds {MODELS}, or "
            f"rows without {MANIFEST}; choose another folder"
        )
    if before is None or not has_scores:
        for left in filter(folder.exists, (REFUSED, READINGS)):
            folder.delete(left)
        folder.write_json(MANIFEST, manifest)
        return folder, today
    compared = ("rows_per_chunk", *hashes)
    changed = [name for name in compared if before.get(name) != manifest[name]]
    if changed:
        raise InputError(
            f"--output '{folder.path}' has scores from another model or other rows "
            f"({', '.join(changed)} differ); choose another folder"
        )
    return folder, date.fromisoformat(before.get("template_date", today.isoformat()))


def require_chunks(folder: Storage, written: set[str]) -> None:
    """Check that this machine sees every file that the workers wrote.

    Raises:
        InputError: files are missing, because they are on other machines.
    """
    if missing := written - set(list_chunks(folder, ROWS)):
        raise InputError(
            f"{len(missing)} of {len(written)} chunks were scored but are missing from "
            f"{folder.path}: workers wrote them to other machines. --output must be a folder or "
            "URI that every machine reaches"
        )


def list_chunks(folder: Storage, kind: str) -> list[str]:
    """Return the names of the finished chunks, without drafts left behind by a kill."""
    names = [entry.name for entry in folder.list(kind)]
    return [name for name in names if name.endswith(".jsonl")]


def to_json_lines(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as JSON Lines; a lone surrogate stays a JSON escape."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode(errors="backslashreplace").decode()


def read_lines(folder: Storage, name: str) -> list[str]:
    """Return the lines of a chunk's file."""
    return folder.read_text(name).split("\n")[:-1]
