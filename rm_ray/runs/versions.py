"""Which models of a run are published, which are to be, and which checkpoints must stay for that.

A run keeps a record of each version in ``hub/NAMESPACE--NAME/``, and until it is published its
files in a folder beside the record. Whatever is interrupted goes on from these.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rm_ray.config.train_config import HubConfig
from rm_ray.runs.layout import PROBES
from rm_ray.runs.manifest import FoundCheckpoint, badness
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

State = Literal["waiting", "published", "refused"]

MAIN = "main.json"

SPARE = 2
"""For how many more checkpoints there must be room where some are held for the mirror."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A model of the run, from when it was made ready to be published."""

    step: int
    tag: str
    state: State
    """``waiting`` to be uploaded, or ``refused`` because clients score otherwise."""
    metrics: dict[str, float] = field(default_factory=dict)
    commit: str = ""
    """What the tag stands for on the Hub."""
    problem: str = ""
    """Why it was refused."""
    differences: dict[str, float] = field(default_factory=dict)
    """How far the rewards of each client were from those of training, at most."""
    num_conversations: int = 0
    """How many conversations were compared."""


def version_name(step: int) -> str:
    """Return what a version is called, where nothing is put before it."""
    return f"step-{step:08d}"


@dataclass(frozen=True, kw_only=True)
class Versions:
    """A run's records of its versions in one repository of the Hub."""

    run_folder: Storage
    repo_id: str

    @property
    def folder(self) -> Storage:
        """Where they are kept."""
        return self.run_folder.folder(f"hub/{self.repo_id.replace('/', '--')}")

    def read(self, known: Mapping[int, Version] | None = None) -> dict[int, Version]:
        """Return all versions by their steps; of those ``known`` already, as they were then."""
        known = known or {}
        versions = {}
        for info in self.folder.list():
            if not re.fullmatch(r"step-\d+\.json", info.base_name):
                continue  # files of a version, or a draft
            step = int(info.base_name.removesuffix(".json").rpartition("-")[2])
            try:
                found = known.get(step) or Version(**self.folder.read_json(info.base_name))
            except (ValueError, TypeError) as error:
                logger.warning("%s is unreadable, and left out: %s", info.path, error)
                continue
            versions[step] = found
        return versions

    def write(self, version: Version) -> None:
        """Keep a version's record, in the place of an earlier one."""
        self.folder.write_json(f"{version_name(version.step)}.json", asdict(version))

    def files(self, step: int) -> Storage:
        """Return the folder of a version's files."""
        return self.folder.folder(version_name(step))

    def keep_files(self, step: int, local: Path) -> None:
        """Keep a version's files until it is published."""
        self.folder.upload(local, version_name(step))

    def delete_files(self, step: int) -> None:
        """Delete the files of a version that is published."""
        if self.folder.exists(version_name(step)):
            self.folder.delete(version_name(step))

    def forget(self, step: int) -> None:
        """Delete the record and the files of a version."""
        self.folder.delete_file(f"{version_name(step)}.json")
        self.delete_files(step)

    @property
    def main(self) -> str | None:
        """The tag of what was put on main; none until that is done."""
        written = self.folder.read_json(MAIN)
        return None if written is None else str(written["tag"])

    def write_main(self, tag: str) -> None:
        """Note what was put on main."""
        self.folder.write_json(MAIN, {"tag": tag})


def find_wanted(
    checkpoints: Sequence[FoundCheckpoint],
    versions: dict[int, Version],
    hub: HubConfig,
    *,
    best_by: str | None,
    last_step: int,
) -> list[FoundCheckpoint]:
    """Return the checkpoints that are to become versions and have not, the oldest first.

    The last step is published from the run's export, when all is known that its card says. Those
    without probes, of older code, cannot be compared with what clients make of them.
    """
    with_probes = [found for found in checkpoints if PROBES in found.manifest.files]
    newest_of_step = {found.manifest.step: found for found in sorted(with_probes, key=_name)}
    ready = {step: found for step, found in newest_of_step.items() if step < last_step}
    if hub.every == "final":
        return []
    if hub.every == "checkpoint" or best_by is None:
        return [found for step, found in sorted(ready.items()) if step not in versions]
    wanted, least = [], math.inf
    metrics = {step: found.manifest.metrics for step, found in ready.items()}
    metrics |= {step: version.metrics for step, version in versions.items()}
    for step in sorted(metrics):
        score = badness(metrics[step], best_by)
        if score < least:
            least = score
            wanted += [ready[step]] if step not in versions else []
    return wanted


def choose_held(wanted: Sequence[FoundCheckpoint], free_bytes: int | None) -> set[str]:
    """Name the checkpoints that stay until they have been made ready to be published.

    Those are all that are wanted, or none where the storage is nearly full: training comes first.
    """
    sizes = [sum(entry["size"] for entry in found.manifest.files.values()) for found in wanted]
    if wanted and free_bytes is not None and free_bytes < SPARE * max(sizes):
        return set()
    return {found.name for found in wanted}


def _name(found: FoundCheckpoint) -> str:
    return found.name
