"""Records of the versions of a run's model on the Hugging Face Hub.

A run keeps a record of each version in ``hub/NAMESPACE--NAME/`` and, until it is published, the
version's files in a folder next to the record. Interrupted publishing resumes from these.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

State = Literal["waiting", "published", "refused"]

MAIN = "main.json"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A model of the run that was prepared for the Hub."""

    step: int
    tag: str
    state: State
    """``waiting`` for its upload, ``published``, or ``refused`` because clients' rewards differ."""
    metrics: dict[str, float] = field(default_factory=dict)
    commit: str = ""
    """The tag's commit on the Hub."""
    problem: str = ""
    """Why the version was refused."""
    differences: dict[str, float] = field(default_factory=dict)
    """Largest difference from the training rewards, by client."""
    num_conversations: int = 0
    """Number of conversations compared."""


def version_name(step: int) -> str:
    """Return a version's name without its prefix."""
    return f"step-{step:08d}"


@dataclass(frozen=True, kw_only=True)
class Versions:
    """A run's records of its versions in one Hub repository."""

    run_folder: Storage
    repo_id: str

    @property
    def folder(self) -> Storage:
        """Folder of the records."""
        return self.run_folder.folder(f"hub/{self.repo_id.replace('/', '--')}")

    def read(self, known: Mapping[int, Version] | None = None) -> dict[int, Version]:
        """Return all versions by step; those in ``known`` are not read again."""
        known = known or {}
        versions = {}
        for entry in self.folder.list():
            if not re.fullmatch(r"step-\d+\.json", entry.name):
                continue  # a version's files, or a draft
            step = int(entry.name.removesuffix(".json").rpartition("-")[2])
            try:
                found = known.get(step) or Version(**self.folder.read_json(entry.name))
            except (ValueError, TypeError) as error:
                logger.warning("%s is unreadable, skipping it: %s", entry.path, error)
                continue
            versions[step] = found
        return versions

    def write(self, version: Version) -> None:
        """Write a version's record, replacing any earlier one."""
        self.folder.write_json(f"{version_name(version.step)}.json", asdict(version))

    def files(self, step: int) -> Storage:
        """Return the folder of a version's files."""
        return self.folder.folder(version_name(step))

    def keep_files(self, step: int, local: Path) -> None:
        """Store a version's files until it is published."""
        self.folder.upload(local, version_name(step))

    def delete_files(self, step: int) -> None:
        """Delete the files of a published version."""
        if self.folder.exists(version_name(step)):
            self.folder.delete(version_name(step))

    def forget(self, step: int) -> None:
        """Delete a version's record and files."""
        self.folder.delete_file(f"{version_name(step)}.json")
        self.delete_files(step)

    @property
    def main(self) -> str | None:
        """Tag of the version on main; None if there is none."""
        written = self.folder.read_json(MAIN)
        return None if written is None else str(written["tag"])

    def write_main(self, tag: str) -> None:
        """Record the tag of the version on main."""
        self.folder.write_json(MAIN, {"tag": tag})
