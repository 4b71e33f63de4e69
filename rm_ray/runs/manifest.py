"""Checkpoint manifests, and the check that a checkpoint is intact.

A checkpoint is a folder with the files of all ranks and a manifest of their sizes and checksums. It
is intact if every file matches the manifest, whatever order the files were written in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm_ray.storage import BLOCK, Storage

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a checkpoint."""

    step: int
    plan_fingerprint: str
    metrics: dict[str, float]
    """Metrics of the model, for keep_best_by."""
    files: dict[str, dict[str, Any]]
    """``size`` and ``sha256`` of each file, and the ``extents`` of its parameters."""

    def to_json(self) -> str:
        """Return one JSON object that includes its own checksum."""
        return json.dumps({**asdict(self), "sha256": self._checksum()}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the output of ``to_json``.

        Raises:
            ValueError, TypeError: the text is not a manifest, or was modified.
        """
        fields = json.loads(text)
        checksum = fields.pop("sha256")
        manifest = cls(**fields)
        if checksum != manifest._checksum():
            raise ValueError(f"{MANIFEST} does not match its own checksum")
        return manifest

    def _checksum(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint in the run's folder."""

    name: str
    manifest: Manifest

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(entry["size"] for entry in self.manifest.files.values())


def describe_file(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of a file."""
    with path.open("rb") as file:
        blocks = iter(lambda: file.read(BLOCK), b"")
        return {"size": path.stat().st_size, "sha256": _sha256(blocks)}


def read_manifest(run_folder: Storage, name: str) -> Manifest | None:
    """Return a checkpoint's manifest; None if it is missing or invalid.

    Raises:
        OSError: the storage does not answer; the checkpoint may still be intact.
    """
    try:
        return Manifest.from_json(run_folder.read_text(f"{name}/{MANIFEST}"))
    except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
        return None


def read_checkpoint(run_folder: Storage, name: str) -> Checkpoint | None:
    """Return a checkpoint with its manifest; None if the manifest is missing or invalid.

    Raises:
        OSError: the storage does not answer.
    """
    manifest = read_manifest(run_folder, name)
    return None if manifest is None else Checkpoint(name=name, manifest=manifest)


def find_fault(
    run_folder: Storage,
    name: str,
    manifest: Manifest | None,
    *,
    share: int = 0,
    shares: int = 1,
    on_file: Callable[[], None] = lambda: None,
) -> str | None:
    """Return a description of a checkpoint's fault, or None if it is intact.

    The files are divided among ``shares`` callers; this one reads number ``share``. With 0 shares
    no file is read and only sizes are compared. ``on_file`` is called after each that is read.
    """
    if manifest is None:
        return f"{MANIFEST} is missing or unreadable"
    found = run_folder.look_up([f"{name}/{file}" for file in manifest.files])
    for (file, expected), there in zip(manifest.files.items(), found, strict=True):
        if not there.is_file:
            return f"{file} is missing"
        if there.size != expected["size"]:
            return f"{file} has {there.size} bytes instead of {expected['size']}"
    if shares == 0:
        return None
    for file, expected in list(manifest.files.items())[share::shares]:
        try:
            checksum = _sha256(run_folder.read_blocks(f"{name}/{file}"))
        except OSError as error:
            run_folder.probe()  # raises if the storage is at fault, not the checkpoint
            return f"{file} cannot be read ({error})"
        if checksum != expected["sha256"]:
            return f"{file} does not match the checksum in its manifest"
        on_file()
    return None


def is_intact(run_folder: Storage, checkpoint: Checkpoint) -> bool:
    """Return whether all files of a checkpoint exist with the right sizes."""
    return find_fault(run_folder, checkpoint.name, checkpoint.manifest, shares=0) is None


def find_intact(run_folder: Storage, names: Iterable[str]) -> Iterator[Checkpoint]:
    """Yield the intact checkpoints among ``names``, judged by file sizes only."""
    for name in names:
        checkpoint = read_checkpoint(run_folder, name)
        if checkpoint is not None and is_intact(run_folder, checkpoint):
            yield checkpoint


def _sha256(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
