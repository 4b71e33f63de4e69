"""Checkpoints in a run's folder: which are whole, which to go on from, and which to keep.

A checkpoint is a folder with the files of all ranks and a manifest of their sizes and checksums. It
is whole when every file is as the manifest says, whatever was written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pyarrow import fs as pafs

from rm_ray.errors import InputError
from rm_ray.runs.attempts import list_checkpoints
from rm_ray.storage import Storage
from rm_ray.train.collectives import gather_objects

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint consists of."""

    step: int
    plan_fingerprint: str
    metrics: dict[str, float]
    """How good the model is, for keep_best_by."""
    files: dict[str, dict[str, Any]]
    """``size`` and ``sha256`` of each file, and the ``extents`` of each parameter in it."""

    def to_json(self) -> str:
        """Write one JSON object, with a checksum of itself."""
        return json.dumps({**asdict(self), "sha256": self._checksum()}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError, TypeError: it is something else, or has been changed.
        """
        fields = json.loads(text)
        checksum = fields.pop("sha256")
        manifest = cls(**fields)
        if checksum != manifest._checksum():
            raise ValueError(f"{MANIFEST} does not have its own checksum")
        return manifest

    def _checksum(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint in the run's folder."""

    name: str
    manifest: Manifest


def describe_file(path: Path) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": _sha256(file)}


def read_manifest(run_folder: Storage, name: str) -> Manifest | None:
    """Return a checkpoint's manifest; None where it is missing or not one.

    Raises:
        OSError: the storage does not answer, which says nothing of the checkpoint.
    """
    try:
        return Manifest.from_json(run_folder.read_text(f"{name}/{MANIFEST}"))
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
        return None


def find_fault(
    run_folder: Storage, name: str, manifest: Manifest | None, *, share: int = 0, shares: int = 1
) -> str | None:
    """Return what is wrong with a checkpoint, or None.

    Of ``shares`` callers each reads its ``share`` of the files; with none, nothing is read, and
    only sizes are compared.
    """
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    paths = [run_folder.join(f"{name}/{file}") for file in manifest.files]
    found = run_folder.filesystem.get_file_info(paths)
    for (file, entry), info in zip(manifest.files.items(), found, strict=True):
        if info.type != pafs.FileType.File:
            return f"{file} is missing"
        if info.size != entry["size"]:
            return f"{file} has {info.size} bytes instead of {entry['size']}"
    if shares == 0:
        return None
    for path, (file, entry) in list(zip(paths, manifest.files.items(), strict=True))[share::shares]:
        try:
            with run_folder.filesystem.open_input_stream(path) as stream:
                checksum = _sha256(stream)
        except OSError as error:
            run_folder.probe()  # otherwise this says nothing of the checkpoint
            return f"{file} cannot be read ({error})"
        if checksum != entry["sha256"]:
            return f"{file} does not have the checksum of its manifest"
    return None


def find_checkpoint(
    run_folder: Storage, plan_fingerprint: str, *, rank: int = 0, world_size: int = 1
) -> FoundCheckpoint | None:
    """Return the newest checkpoint of the run that is whole; None where there is none.

    Every rank calls it and reads a share of the files.

    Raises:
        InputError: the checkpoint belongs to other data.
        OSError: the storage does not answer.
    """
    gather_objects(None)  # no machine is still bringing what it had staged
    for name in gather_objects(list_checkpoints(run_folder) if rank == 0 else [])[0]:
        manifest = read_manifest(run_folder, name)
        fault = find_fault(run_folder, name, manifest, share=rank, shares=world_size)
        faults = [fault for fault in gather_objects(fault) if fault is not None]
        if faults or manifest is None:
            logger.warning("checkpoint %s is not used: %s", run_folder.join(name), faults[0])
            continue
        if manifest.plan_fingerprint != plan_fingerprint:
            raise InputError(
                "the run's checkpoint was made from other pairs, seed or batch size than those of "
                "now; give this run another run.name, or the old data back"
            )
        return FoundCheckpoint(name=name, manifest=manifest)
    return None


def choose_kept(
    whole: Sequence[FoundCheckpoint], *, keep: int, best_by: str | None
) -> list[FoundCheckpoint]:
    """Return which of the whole checkpoints stay, newest first.

    Those are the newest ``keep``; by a metric the best ones and the newest, ``keep`` in all.
    """
    newest_first = sorted(whole, key=lambda found: found.name, reverse=True)
    if best_by is None:
        return newest_first[:keep]
    newest, best = newest_first[:1], rank_by(newest_first, best_by)
    kept = [*newest, *(found for found in best if found not in newest)][:keep]
    return [found for found in newest_first if found in kept]


def rank_by(whole: Sequence[FoundCheckpoint], metric: str) -> list[FoundCheckpoint]:
    """Return the best by a metric first; of equals the earliest, without the metric the newest."""

    def place(found: FoundCheckpoint) -> tuple[float, int]:
        bad, step = badness(found.manifest.metrics, metric), found.manifest.step
        return (bad, step) if math.isfinite(bad) else (bad, -step)

    return sorted(whole, key=place)


def badness(metrics: dict[str, float], metric: str) -> float:
    """Return a number that is lower for a better model; infinite where the metric is no number."""
    value = metrics.get(metric, math.nan)
    sign = 1 if metric.endswith("/loss") else -1
    return sign * value if math.isfinite(value) else math.inf


def _sha256(stream: BinaryIO | pafs.NativeFile) -> str:
    digest = hashlib.sha256()
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()
