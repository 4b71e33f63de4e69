"""One rank's list of a run's intact checkpoints, and the deletion of old ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.errors import TrainingError
from rm_ray.runs.checkpoint_names import attempt_of, list_checkpoints
from rm_ray.runs.manifest import Checkpoint, find_fault, find_intact
from rm_ray.runs.retention import kept_names, rank_by
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class StoredCheckpoints:
    """Intact checkpoints in the run's folder, from this attempt and earlier ones."""

    run_folder: Storage
    config: CheckpointConfig
    attempt: int
    find_held: Callable[[Sequence[Checkpoint]], set[str]] = lambda _: set()
    """Returns the names of intact checkpoints that retention must not delete yet."""
    add_metrics: Callable[[Sequence[Checkpoint]], list[Checkpoint]] = list
    """Returns checkpoints with metrics that were found after they were saved."""
    intact: list[Checkpoint] = field(default_factory=list)

    def resume(self, found: Checkpoint) -> None:
        """Add the checkpoint that this attempt resumes from, and older intact ones."""
        older = [name for name in list_checkpoints(self.run_folder) if name < found.name]
        self.intact = [found, *find_intact(self.run_folder, older)]

    def add(self, found: Checkpoint) -> None:
        """Add a checkpoint that has been copied."""
        self.intact.append(found)

    def prune(self) -> None:
        """Delete checkpoints that retention does not keep, intact or not; the newest stays.

        Only rank 0 calls it, once every rank has copied its part of the newest.

        Raises:
            TrainingError: the newest is incomplete.
        """
        if not self.intact:
            return
        try:
            self._require_newest()
            # First: one that is evaluated from here on is held or has its metrics.
            held = self.find_held(self.intact)
            self.intact = self.add_metrics(self.intact)
            kept = kept_names(
                self.intact, keep=self.config.keep, best_by=self.config.keep_best_by, held=held
            )
            self.intact = [found for found in self.intact if found.name in kept]
            for name in list_checkpoints(self.run_folder):
                if name not in kept and attempt_of(name) <= self.attempt:
                    self.run_folder.delete(name)
        except OSError as error:
            logger.warning("keeping old checkpoints for now: %s", error)

    def _require_newest(self) -> None:
        newest = max(self.intact, key=lambda found: found.name)
        if fault := find_fault(self.run_folder, newest.name, newest.manifest, shares=0):
            raise TrainingError(
                f"every worker has copied {newest.name} to {self.run_folder.path}, but {fault}: "
                "run.storage_path is not the same folder on all machines. Set it to a shared "
                "folder. Earlier checkpoints are kept"
            )

    @property
    def last(self) -> str | None:
        """Path of the newest checkpoint."""
        return self.run_folder.join(max(f.name for f in self.intact)) if self.intact else None

    @property
    def last_step(self) -> int:
        """Step of the newest checkpoint; 0 if there is none."""
        return max((found.manifest.step for found in self.intact), default=0)

    @property
    def best(self) -> str | None:
        """Path of the best checkpoint by ``checkpoint.keep_best_by``, or of the newest if unset."""
        if self.config.keep_best_by is None or not self.intact:
            return self.last
        return self.run_folder.join(rank_by(self.intact, self.config.keep_best_by)[0].name)
