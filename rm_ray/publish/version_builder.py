"""Checkpoint or run export -> version: exported, compared with training, described."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rm_ray.config.train_config import TrainConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import keep_statistics
from rm_ray.local_home import local_home
from rm_ray.model.export import PREFIX, Part, export_weights
from rm_ray.publish.card import CardFacts, write_card
from rm_ray.publish.export_gate import GateResult, run_export_gate
from rm_ray.publish.partial_export import export_onto_base
from rm_ray.runs.history import History
from rm_ray.runs.late_evaluations import merge_records, read_records
from rm_ray.runs.layout import (
    AUDIT,
    EVALUATIONS,
    EXPORT,
    HISTORY,
    REFERENCE_REWARDS,
    RUN,
    SKELETON,
    STATE,
)
from rm_ray.runs.manifest import Checkpoint, is_intact
from rm_ray.runs.retention import best_step
from rm_ray.runs.versions import Version, Versions, version_name
from rm_ray.storage import Storage
from rm_ray.train.slices import stream_weights

logger = logging.getLogger(__name__)

Result = dict[str, Any]
"""A finished run's ``result.json``."""


@dataclass(kw_only=True)
class VersionBuilder:
    """Prepares versions of one run for publishing, and keeps them with the run until then."""

    run_folder: Storage
    config: TrainConfig
    """The run's configuration, with the ``hub`` section to publish with."""
    versions: Versions

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The run's tokenizer, with the template and the pad token of training."""
        with self.run_folder.folder(SKELETON).local_folder() as skeleton:
            return load_tokenizer(str(skeleton))

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run's ``run.json``."""
        return dict(self.run_folder.read_json(RUN))

    def from_checkpoint(self, found: Checkpoint, result: Result | None) -> Version | None:
        """Export an intact checkpoint, compare client rewards with training, and describe it.

        Return None if it is deleted in the meantime. ``result`` is the run's, once it is finished.

        Raises:
            InputError: the base model, which checkpoints of a part of it need, changed or is gone.
            ClientsError: the clients did not answer.
        """
        with self.scratch_folder() as folder:
            try:
                self.export(found, folder)
                rewards = self._read_json(found, REFERENCE_REWARDS)
                history = self._read_history(found)
                mlflow_run_id = self._read_json(found, STATE)["mlflow_run_id"]
            except FileNotFoundError:
                if is_intact(self.run_folder, found):
                    raise
                return None
            gate = run_export_gate(folder, rewards, self.config.model.dtype)
            version = self._new_version(found.manifest.step, found.manifest.metrics, gate)
            if version.state == "waiting":
                self.describe(version, history, mlflow_run_id, result, folder)
            return self._keep(version, folder)

    def from_export(self, result: Result) -> Version:
        """Compare and describe the run's final model; its files stay in the run's export.

        Raises:
            InputError: the run has no reference rewards.
            ClientsError: the clients did not answer.
        """
        rewards = self.run_folder.read_json(REFERENCE_REWARDS)
        if rewards is None:
            raise InputError(
                f"the run in {self.run_folder.path} has no {REFERENCE_REWARDS}, so client rewards "
                "cannot be compared with training; an older version of this project created it"
            )
        with self.run_folder.folder(EXPORT).local_folder() as folder:
            gate = run_export_gate(folder, rewards, self.config.model.dtype)
        version = self._new_version(result["steps"], result["metrics"], gate)
        with self.scratch_folder() as folder:
            if version.state == "waiting":
                history = self.run_folder.read_text(HISTORY)
                self.describe(version, history, result["mlflow_run_id"], result, folder)
            return self._keep(version, folder)

    def describe(
        self,
        version: Version,
        history: str,
        mlflow_run_id: str | None,
        result: Result | None,
        folder: Path,
    ) -> None:
        """Write a version's card and its plot; ``history`` ends at its step, as JSON Lines.

        Without a ``result``, the card says that the run is still training.
        """
        best_by = self.config.checkpoint.keep_best_by
        report = f"{version_name(version.step)}.json"
        sets = {
            name: self.run_folder.read_json(f"{EVALUATIONS}/{name}/{report}")
            for name in self.config.evaluation.named_sets
        }
        facts = CardFacts(
            record=self.record | {"mlflow_run_id": mlflow_run_id} | _head_of(result),
            step=version.step,
            total_steps=None if result is None else result["steps"],
            is_best=result is not None and version.step == best_step(result, best_by=best_by),
            metrics=version.metrics,
            evaluation=self.run_folder.read_json(f"{EVALUATIONS}/{report}"),
            sets={name: found for name, found in sets.items() if found is not None},
            audit=self.run_folder.read_json(AUDIT),
            history=History.from_json_lines(history.splitlines()),
            gate=GateResult(
                differences=version.differences, num_conversations=version.num_conversations
            ),
            tokenizer=self.tokenizer,
            place=self.versions.repo_id,
            tag=version.tag,
        )
        write_card(facts, folder)

    def tag(self, step: int) -> str:
        """Return the tag of a step's version."""
        return f"{self.config.hub.revision_prefix}{version_name(step)}"

    @contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        """Yield a scratch folder on this machine; the run's next mirror removes leftovers."""
        home = scratch_home(self.record["key"])
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as name:
            yield Path(name)

    def _new_version(self, step: int, metrics: dict[str, float], gate: GateResult) -> Version:
        if gate.problem:
            logger.error(
                "step %d is not published: client rewards differ from training: %s",
                step,
                gate.problem,
            )
        return Version(
            step=step,
            tag=self.tag(step),
            state="refused" if gate.problem else "waiting",
            metrics=metrics,
            problem=gate.problem,
            differences=gate.differences,
            num_conversations=gate.num_conversations,
        )

    def _keep(self, version: Version, folder: Path) -> Version:
        """Store a version's files, then its record, unless another process has done so."""
        there = self.versions.read().get(version.step)
        if there is not None:
            return there
        if version.state == "waiting":
            self.versions.keep_files(version.step, folder)
        self.versions.write(version)
        return version

    def export(self, found: Checkpoint, folder: Path) -> None:
        """Write a checkpoint's model for clients, in the model's dtype, and its statistics."""
        self._export_weights(found, folder)
        keep_statistics(self.run_folder, found.manifest.step, Storage.open(str(folder)))

    def _export_weights(self, found: Checkpoint, folder: Path) -> None:
        dtype = getattr(torch, self.config.model.dtype)
        slices = [name for name, entry in found.manifest.files.items() if "extents" in entry]
        if not self.config.trains_all:
            disable_progress_bar()
            files = self.run_folder.folder(found.name).local_copies(slices)
            base_hash = self._read_json(found, STATE).get("base_hash", "")
            export_onto_base(self.config, self.tokenizer, files, folder, base_hash=base_hash)
            return

        def read(shapes: Mapping[str, torch.Size]) -> Iterator[Part]:
            stored = {f"{PREFIX}{name}": shape for name, shape in shapes.items()}
            files = self.run_folder.folder(found.name).local_copies(slices)
            for name, first, values in stream_weights(stored, files):
                yield name.removeprefix(PREFIX), first, values

        disable_progress_bar()  # it would garble ours
        with self.run_folder.folder(SKELETON).local_folder() as skeleton:
            most = self.config.model.shard_bytes
            export_weights(read, skeleton, folder, dtype=dtype, max_shard_size=most)

    def _read_history(self, found: Checkpoint) -> str:
        """Return a checkpoint's history as JSON Lines, with evaluations beside training."""
        text = self.run_folder.read_text(f"{found.name}/{HISTORY}")
        late = [one for one in read_records(self.run_folder) if one.step <= found.manifest.step]
        if not late:
            return text
        return merge_records(History.from_json_lines(text.splitlines()), late).to_json_lines()

    def _read_json(self, found: Checkpoint, file: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.run_folder.read_text(f"{found.name}/{file}"))
        return read


def _head_of(result: Result | None) -> dict[str, Any]:
    """Return where the head started, as workers found it; nothing before the run is finished."""
    return {"head": result["head"]} if result is not None and "head" in result else {}


def scratch_home(run_key: str) -> Path:
    """Return this machine's scratch folder for preparing a run's versions."""
    return local_home() / "publishing" / run_key
