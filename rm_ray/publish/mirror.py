"""A run's checkpoints -> versions on the Hub, one at a time, during training and afterwards.

``wanted checkpoint -> exported, gated, described -> waiting -> uploaded, compared, tagged``. Each
arrow ends with a record in the run's folder, so each can be repeated after any interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from rm_ray.config.train_config import TrainConfig
from rm_ray.publish.card import CARD
from rm_ray.publish.hub import HubContentsError, HubRepo
from rm_ray.publish.version_builder import Result, VersionBuilder
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.late_evaluations import LateEvaluations
from rm_ray.runs.layout import EXPORT, HISTORY
from rm_ray.runs.manifest import Checkpoint, find_fault, is_intact, read_checkpoint
from rm_ray.runs.retention import find_wanted, has_spare_room, kept_names
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Mirror:
    """Publishes the versions of one run."""

    run_folder: Storage
    config: TrainConfig
    """The run's configuration, with the ``hub`` section to publish with."""
    last_step: int
    """Total steps of the run."""
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _known: dict[int, Version] = field(default_factory=dict)

    @cached_property
    def versions(self) -> Versions:
        """Records of the run's versions."""
        assert self.config.hub.repo_id is not None
        return Versions(run_folder=self.run_folder, repo_id=self.config.hub.repo_id)

    @cached_property
    def late(self) -> LateEvaluations:
        """Evaluations beside training."""
        return LateEvaluations(
            run_folder=self.run_folder, config=self.config, last_step=self.last_step
        )

    @cached_property
    def builder(self) -> VersionBuilder:
        """The builder of the run's versions."""
        return VersionBuilder(
            run_folder=self.run_folder, config=self.config, versions=self.versions
        )

    def find_wanted(self) -> list[Checkpoint]:
        """Return the checkpoints to publish that have no version yet, oldest first.

        With an evaluator beside training, these are among the checkpoints before the first one
        that waits for its evaluation, whose figures belong into the card.
        """
        names = list_checkpoints(self.run_folder)
        self._checkpoints = {n: each for n, each in self._checkpoints.items() if n in names}
        for name in names:
            if name in self._checkpoints:
                continue
            if (checkpoint := read_checkpoint(self.run_folder, name)) is not None:
                self._checkpoints[name] = checkpoint
        return find_wanted(
            self.late.choose_comparable(list(self._checkpoints.values())),
            self.read_versions(),
            self.config.hub,
            best_by=self.config.checkpoint.keep_best_by,
            last_step=self.last_step,
        )

    def find_waiting(self) -> list[Version]:
        """Return the versions waiting for upload, oldest first."""
        versions = sorted(self.read_versions().items())
        return [version for _, version in versions if version.state == "waiting"]

    def read_versions(self) -> dict[int, Version]:
        """Return all versions by step."""
        done = {step: v for step, v in self._known.items() if v.state != "waiting"}
        self._known = self.versions.read(done)
        return self._known

    def release(self) -> None:
        """Delete the checkpoints that were kept only for publishing."""
        wanted = {found.name for found in self.find_wanted()}
        config = self.config.checkpoint
        intact = self._list_intact()
        kept = kept_names(intact, keep=config.keep, best_by=config.keep_best_by, held=wanted)
        for name in self._checkpoints.keys() - kept:
            self.run_folder.delete(name)

    def _list_intact(self) -> list[Checkpoint]:
        """Return the intact checkpoints among those that ``find_wanted`` has read."""
        found = [each for each in self._checkpoints.values() if is_intact(self.run_folder, each)]
        return self.late.add_metrics(found)

    def retry_refused(self) -> None:
        """Retry refused versions: export them again, or publish their kept files.

        A version that failed the export gate stays refused if its checkpoint is gone.
        """
        self.find_wanted()
        can_be_made = {self.last_step} | {found.manifest.step for found in self._list_intact()}
        for version in self.read_versions().values():
            if version.state != "refused":
                continue
            files = self.versions.files(version.step)
            if version.step in can_be_made:
                self.versions.forget(version.step)
            elif files.exists(CARD):
                tag = self.builder.tag(version.step)
                again = replace(version, state="waiting", problem="", tag=tag)
                files.write_text(CARD, files.read_text(CARD).replace(version.tag, again.tag))
                self.versions.write(again)
        self._known = {}

    def make_ready(self, found: Checkpoint, *, result: Result | None = None) -> Version | None:
        """Prepare a version of a checkpoint; ``result`` is the run's, once it is finished.

        Return None if the checkpoint is not intact (for example still being copied), or is deleted
        in the meantime.

        Raises:
            OSError: the storage is nearly full.
            ClientsError: the clients did not answer.
        """
        if not has_spare_room(self.run_folder.free_bytes(), found.size):
            raise OSError(f"{self.run_folder.path} is nearly full; checkpoints need the space")
        fault = find_fault(self.run_folder, found.name, found.manifest)
        if fault is not None:
            logger.debug("%s is not published yet: %s", found.name, fault)
            return None
        return self.builder.from_checkpoint(self.late.add_metrics([found])[0], result)

    def publish(self, version: Version, repo: HubRepo) -> None:
        """Upload a waiting version; mark it refused if its tag has other contents.

        Raises:
            HubRefusedError, HubAwayError: the Hub does not accept it at the moment.
        """
        message = f"{self.config.run.name}, step {version.step}"
        with self._files(version) as folder:
            try:
                commit = repo.publish(folder, version.tag, message=message)
            except HubContentsError as error:  # a retry would not help
                logger.error("%s is not published: %s", version.tag, error)
                self.versions.write(replace(version, state="refused", problem=str(error)))
                return
        self.versions.write(replace(version, state="published", commit=commit))
        self.versions.delete_files(version.step)
        logger.info("%s has %s", repo.repo_id, version.tag)

    @contextmanager
    def _files(self, version: Version) -> Iterator[Path]:
        """Yield a folder with all files of a version; the last model's are in the run's export."""
        with self.versions.files(version.step).local_folder() as kept:
            if version.step != self.last_step:
                yield kept
                return
            with (
                self.run_folder.folder(EXPORT).local_folder() as export,
                self.builder.scratch_folder() as folder,
            ):
                for path in [*export.iterdir(), *kept.iterdir()]:
                    (folder / path.name).unlink(missing_ok=True)
                    (folder / path.name).symlink_to(path)
                yield folder

    def promote(self, version: Version, repo: HubRepo, result: Result) -> None:
        """Put a version on main, with a card that describes the whole run.

        Raises:
            HubRefusedError, HubAwayError: the Hub does not accept it at the moment.
        """
        history = self.run_folder.read_text(HISTORY)
        with self.builder.scratch_folder() as folder:
            self.builder.describe(version, history, result["mlflow_run_id"], result, folder)
            message = f"{version.tag} of {self.config.run.name}"
            repo.promote(version.tag, message=message, instead=folder)
        self.versions.write_main(version.tag)
        logger.info("%s has %s on main", repo.repo_id, version.tag)
