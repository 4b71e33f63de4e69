"""From a run's checkpoints to versions on the Hub, one after another, while it trains and after.

``wanted checkpoint -> exported, gated, described -> waiting -> uploaded, compared, tagged``. Each
arrow ends in a record of the run's folder, and may be gone through again after any interruption.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rm_ray.config.train_config import TrainConfig
from rm_ray.data.tokens.tokenization import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.export import PREFIX, export_weights
from rm_ray.publish.card import CARD, CardFacts, write_card
from rm_ray.publish.export_gate import GateResult, run_export_gate
from rm_ray.publish.hub import HubContentsError, HubRepo
from rm_ray.runs.attempts import list_checkpoints, step_of
from rm_ray.runs.history import History
from rm_ray.runs.layout import EVALUATIONS, EXPORT, HISTORY, PROBES, RUN, SKELETON, STATE
from rm_ray.runs.manifest import FoundCheckpoint, choose_kept, find_fault, read_manifest
from rm_ray.runs.versions import SPARE, Version, Versions, find_wanted, version_name
from rm_ray.storage import Storage, local_home
from rm_ray.train.slices import read_weights

logger = logging.getLogger(__name__)

Result = dict[str, Any]
"""A finished run's ``result.json``."""


@dataclass(kw_only=True)
class Mirror:
    """Publishes the versions of one run."""

    run_folder: Storage
    config: TrainConfig
    """The run's, with the ``hub`` to publish on."""
    last_step: int
    """Steps of the run."""
    _manifests: dict[str, FoundCheckpoint] = field(default_factory=dict)
    _known: dict[int, Version] = field(default_factory=dict)

    @cached_property
    def versions(self) -> Versions:
        """The records."""
        assert self.config.hub.repo_id is not None
        return Versions(run_folder=self.run_folder, repo_id=self.config.hub.repo_id)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer, with the template and the pad token of training."""
        with local_copy(self.run_folder.folder(SKELETON)) as skeleton:
            return load_tokenizer(str(skeleton))

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run's ``run.json``."""
        return dict(self.run_folder.read_json(RUN))

    def find_wanted(self) -> list[FoundCheckpoint]:
        """Return the checkpoints that are to become versions, the oldest first."""
        names = list_checkpoints(self.run_folder)
        self._manifests = {name: f for name, f in self._manifests.items() if name in names}
        for name in names:
            manifest = None if name in self._manifests else read_manifest(self.run_folder, name)
            if manifest is not None:
                self._manifests[name] = FoundCheckpoint(name=name, manifest=manifest)
        return find_wanted(
            list(self._manifests.values()),
            self.read_versions(),
            self.config.hub,
            best_by=self.config.checkpoint.keep_best_by,
            last_step=self.last_step,
        )

    def find_waiting(self) -> list[Version]:
        """Return the versions that are to be uploaded, the oldest first."""
        versions = sorted(self.read_versions().items())
        return [version for _, version in versions if version.state == "waiting"]

    def read_versions(self) -> dict[int, Version]:
        """Return all versions by their steps."""
        done = {step: v for step, v in self._known.items() if v.state != "waiting"}
        self._known = self.versions.read(done)
        return self._known

    def release(self) -> None:
        """Delete the checkpoints that stayed only until they were made ready."""
        wanted = {found.name for found in self.find_wanted()}
        keep, best_by = self.config.checkpoint.keep, self.config.checkpoint.keep_best_by
        kept = choose_kept(self._find_whole(), keep=keep, best_by=best_by)
        for name in self._manifests.keys() - wanted - {found.name for found in kept}:
            self.run_folder.delete(name)

    def _find_whole(self) -> list[FoundCheckpoint]:
        return [
            found
            for found in self._manifests.values()
            if find_fault(self.run_folder, found.name, found.manifest, shares=0) is None
        ]

    def retry_refused(self) -> None:
        """Have what was refused published again: made anew, or else from the files that are kept.

        What clients refused stays so where its checkpoint is gone.
        """
        self.find_wanted()
        can_be_made = {self.last_step} | {found.manifest.step for found in self._find_whole()}
        for version in self.read_versions().values():
            if version.state != "refused":
                continue
            files = self.versions.files(version.step)
            if version.step in can_be_made:
                self.versions.forget(version.step)
            elif files.exists(CARD):
                again = replace(version, state="waiting", problem="", tag=self._tag(version.step))
                files.write_text(CARD, files.read_text(CARD).replace(version.tag, again.tag))
                self.versions.write(again)
        self._known = {}

    def make_ready(self, found: FoundCheckpoint, *, result: Result | None = None) -> Version | None:
        """Export a checkpoint, compare what clients make of it, and describe it.

        None where the checkpoint is not whole, as while it is copied, or where there is no room;
        ``result`` is the run's, once it is over.

        Raises:
            ClientsError: the clients did not answer.
        """
        step = found.manifest.step
        size = sum(entry["size"] for entry in found.manifest.files.values())
        free = self.run_folder.free_bytes()
        if free is not None and free < SPARE * size:
            raise OSError(f"{self.run_folder.path} is nearly full, and checkpoints need the room")
        fault = find_fault(self.run_folder, found.name, found.manifest)
        if fault is not None:
            logger.debug("%s is not published now: %s", found.name, fault)
            return None
        with self._scratch_folder() as folder:
            try:
                self._export(found, folder)
                probes = self._read_json(found, PROBES)
                history = self.run_folder.read_text(f"{found.name}/{HISTORY}")
                mlflow_run_id = self._read_json(found, STATE)["mlflow_run_id"]
            except FileNotFoundError:
                return None  # deleted in the meantime
            gate = run_export_gate(folder, probes, self.config.model.dtype)
            version = self._new_version(step, found.manifest.metrics, gate)
            if version.state == "waiting":
                write_card(self._facts(version, history, mlflow_run_id, result), folder)
            return self._keep(version, folder)

    def make_last_ready(self, result: Result) -> Version:
        """Compare and describe the model that the run ended with; its files stay where they are.

        Raises:
            InputError: the run has no rewards to compare with.
            ClientsError: the clients did not answer.
        """
        probes = self.run_folder.read_json(PROBES)
        if probes is None:
            raise InputError(
                f"the run in {self.run_folder.path} has no {PROBES}, so nobody can tell whether "
                f"clients "
                "score as training did; it was made by an older version of this project"
            )
        with local_copy(self.run_folder.folder(EXPORT)) as folder:
            gate = run_export_gate(folder, probes, self.config.model.dtype)
        version = self._new_version(result["steps"], result["metrics"], gate)
        with self._scratch_folder() as folder:
            if version.state == "waiting":
                history = self.run_folder.read_text(HISTORY)
                write_card(self._facts(version, history, result["mlflow_run_id"], result), folder)
            return self._keep(version, folder)

    def _keep(self, version: Version, folder: Path) -> Version:
        """Keep a version's files and then its record, unless another has in the meantime."""
        there = self.versions.read().get(version.step)
        if there is not None:
            return there
        if version.state == "waiting":
            self.versions.keep_files(version.step, folder)
        self.versions.write(version)
        return version

    @contextmanager
    def _scratch_folder(self) -> Iterator[Path]:
        """Give a folder of this machine; what kills leave of them, the run's next mirror clears."""
        home = scratch_folder(self.record["key"])
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as name:
            yield Path(name)

    def publish(self, version: Version, repo: HubRepo) -> None:
        """Upload a version that waits.

        Raises:
            HubRefusedError, HubAwayError: the Hub does not take it now.
        """
        message = f"{self.config.run.name}, step {version.step}"
        with self._files(version) as folder:
            try:
                commit = repo.publish(folder, version.tag, message=message)
            except HubContentsError as error:  # it would not be otherwise the next time
                logger.error("%s is not published: %s", version.tag, error)
                self.versions.write(replace(version, state="refused", problem=str(error)))
                return
        self.versions.write(replace(version, state="published", commit=commit))
        self.versions.delete_files(version.step)
        logger.info("%s has %s", repo.repo_id, version.tag)

    @contextmanager
    def _files(self, version: Version) -> Iterator[Path]:
        """Give all files of a version; those of the last model are in the run's export."""
        with local_copy(self.versions.files(version.step)) as kept:
            if version.step != self.last_step:
                yield kept
                return
            with (
                local_copy(self.run_folder.folder(EXPORT)) as export,
                self._scratch_folder() as folder,
            ):
                for path in [*export.iterdir(), *kept.iterdir()]:
                    (folder / path.name).unlink(missing_ok=True)
                    (folder / path.name).symlink_to(path)
                yield folder

    def promote(self, version: Version, repo: HubRepo, result: Result) -> None:
        """Put a version on main, described as what the whole run came to.

        Raises:
            HubRefusedError, HubAwayError: the Hub does not take it now.
        """
        history = self.run_folder.read_text(HISTORY)
        with self._scratch_folder() as folder:
            write_card(self._facts(version, history, result["mlflow_run_id"], result), folder)
            message = f"{version.tag} of {self.config.run.name}"
            repo.promote(version.tag, message=message, instead=folder)
        self.versions.write_main(version.tag)
        logger.info("%s has %s on main", repo.repo_id, version.tag)

    def _new_version(self, step: int, metrics: dict[str, float], gate: GateResult) -> Version:
        if gate.problem:
            logger.error(
                "step %d is not published, because clients do not score as training did: %s",
                step,
                gate.problem,
            )
        return Version(
            step=step,
            tag=self._tag(step),
            state="refused" if gate.problem else "waiting",
            metrics=metrics,
            problem=gate.problem,
            differences=gate.differences,
            num_conversations=gate.num_conversations,
        )

    def _tag(self, step: int) -> str:
        return f"{self.config.hub.revision_prefix}{version_name(step)}"

    def _export(self, found: FoundCheckpoint, folder: Path) -> None:
        """Write a checkpoint's weights for clients, in the precision of training."""
        dtype = getattr(torch, self.config.model.dtype)
        slices = [name for name, entry in found.manifest.files.items() if "extents" in entry]

        def read(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
            stored = {f"{PREFIX}{name}": shape for name, shape in shapes.items()}
            weights = read_weights(stored, self._opened(found, slices), dtype=dtype)
            return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}

        disable_progress_bar()  # of writing, which would run into ours
        with local_copy(self.run_folder.folder(SKELETON)) as skeleton:
            export_weights(read, skeleton, folder)

    def _opened(self, found: FoundCheckpoint, files: list[str]) -> Iterator[Path]:
        for file in files:
            with self.run_folder.local_copy(f"{found.name}/{file}") as path:
                yield path

    def _read_json(self, found: FoundCheckpoint, file: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.run_folder.read_text(f"{found.name}/{file}"))
        return read

    def _facts(
        self, version: Version, history: str, mlflow_run_id: str | None, result: Result | None
    ) -> CardFacts:
        step = version.step
        evaluation = f"{EVALUATIONS}/{version_name(step)}.json"
        return CardFacts(
            record=self.record | {"mlflow_run_id": mlflow_run_id},
            step=step,
            total_steps=None if result is None else result["steps"],
            is_best=result is not None and step == best_step(self.config, result),
            metrics=version.metrics,
            evaluation=self.run_folder.read_json(evaluation),
            history=History.from_json_lines(history.splitlines()),
            gate=GateResult(
                differences=version.differences, num_conversations=version.num_conversations
            ),
            tokenizer=self.tokenizer,
            place=self.versions.repo_id,
            tag=version.tag,
        )


def scratch_folder(run_key: str) -> Path:
    """Return where this machine makes a run's versions ready."""
    return local_home() / "publishing" / run_key


def best_step(config: TrainConfig, result: Result) -> int:
    """Return the step of a finished run's best model: by its metric, or the last."""
    name = str(result["best_checkpoint"] or "").rpartition("/")[2]
    by_metric = config.checkpoint.keep_best_by is not None
    return (step_of(name) if by_metric else 0) or int(result["steps"])


@contextmanager
def local_copy(folder: Storage) -> Iterator[Path]:
    """Give a folder as one of this machine: itself, or a copy that is deleted afterwards."""
    if folder.is_local:
        yield Path(folder.path)
        return
    with tempfile.TemporaryDirectory(prefix="rm_ray-publish-") as copy:
        folder.download(Path(copy))
        yield Path(copy)
