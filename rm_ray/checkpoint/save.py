"""The training state -> a staged copy on each machine -> the run's folder, during training."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from rm_ray.checkpoint.content import CheckpointContent, write_content
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.checkpoint.staging import (
    describe_full_disk,
    discard_staged,
    mark_staged,
    staging_folder,
    upload_staged,
)
from rm_ray.checkpoint.stored import StoredCheckpoints
from rm_ray.cluster.timeouts import UPLOAD_S
from rm_ray.runs.checkpoint_names import checkpoint_name
from rm_ray.runs.manifest import MANIFEST, Checkpoint, Manifest
from rm_ray.storage import Storage
from rm_ray.train.collectives import gather_objects, merge_disjoint, sum_counts
from rm_ray.train.engine import Engine

logger = logging.getLogger(__name__)


class Report(Protocol):
    """Passes a staged folder to a thread that uploads and then deletes it."""

    def __call__(
        self, metrics: dict[str, float], folder: Path, upload: Callable[[Path], None]
    ) -> None:
        """Return without waiting for the upload. Every rank calls it equally often."""


@dataclass(frozen=True, kw_only=True)
class PendingUpload:
    """A checkpoint whose part from this rank is being copied to the run's folder."""

    found: Checkpoint
    is_done: threading.Event


@dataclass(kw_only=True)
class Checkpointer:
    """Saves one rank's part of every checkpoint, together with the other ranks.

    At most one checkpoint is copied at a time. Once all ranks have copied their parts, it counts as
    intact, and older ones may be deleted.
    """

    run_folder: Storage
    run_key: str
    engine: Engine
    attempt: int
    patience_s: float
    """Seconds for which an upload is retried."""
    stored: StoredCheckpoints
    report: Report
    on_wait: Callable[[], None] = lambda: None
    """Called every second while a save waits for the previous one to finish copying."""
    num_failed: int = 0
    """Checkpoints that could not be staged."""
    _pending: PendingUpload | None = None

    def save(self, content: CheckpointContent, metrics: dict[str, float]) -> float:
        """Stage every rank's part, then copy it while training continues.

        Every rank calls it. If any rank cannot stage its part, this checkpoint is skipped. Returns
        the seconds spent waiting for the previous checkpoint.
        """
        waited = self.wait()
        step = content.state.progress.step
        name = checkpoint_name(step, self.attempt)
        folder = staging_folder(self.run_key) / f"rank-{self.engine.rank}" / name
        files, fault = self._stage(folder, content)
        parts = gather_objects((files, fault))
        # Every rank has copied its part of the previous one, and none copies this one yet.
        self._prune()
        manifest = Manifest(
            step=step,
            plan_fingerprint=content.plan_fingerprint,
            metrics=metrics,
            files={file: entry for files, _ in parts for file, entry in files.items()},
        )
        if all(fault is None for _, fault in parts):
            fault = self._seal(folder, manifest)
        faults = [fault for fault in gather_objects(fault) if fault is not None]
        if faults:
            self._discard(folder, step, faults[0])
        else:
            self._upload(folder, Checkpoint(name=name, manifest=manifest))
        return waited

    def wait(self) -> float:
        """Wait until this rank has copied its part of the pending checkpoint; return the seconds.

        Raises:
            TimeoutError: copying takes longer than all retries may.
        """
        started = time.monotonic()
        if self._pending is not None:
            limit = self.patience_s + UPLOAD_S
            while not self._pending.is_done.wait(1.0):
                if time.monotonic() - started > limit:
                    name = self._pending.found.name
                    raise TimeoutError(f"{name} was not copied within {limit:.0f} s")
                self.on_wait()
            self.stored.add(self._pending.found)
            self._pending = None
        return time.monotonic() - started

    def finish(self) -> None:
        """Wait until every rank has copied its part, then delete checkpoints to prune."""
        self.wait()
        gather_objects(None)
        self._prune()

    def _stage(
        self, folder: Path, content: CheckpointContent
    ) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Write this rank's files; return their manifest entries, and the fault if any."""
        device, state = self.engine.device, content.state
        ledger = Ledger(counts=sum_counts(state.ledger.counts, device))
        losses = None
        if state.losses is not None:
            losses = PairLosses(values=merge_disjoint(state.losses.values, device))
        try:
            return write_content(folder, self.engine, content, ledger, losses), None
        except (OSError, SafetensorError) as error:
            return {}, self._describe(folder, error)

    def _seal(self, folder: Path, manifest: Manifest) -> str | None:
        """Write the manifest and mark the folder as staged; return the fault if any."""
        try:
            if self.engine.rank == 0:
                (folder / MANIFEST).write_text(manifest.to_json())
            mark_staged(folder)
        except OSError as error:
            return self._describe(folder, error)
        return None

    def _describe(self, folder: Path, error: Exception) -> str:
        return f"rank {self.engine.rank} {describe_full_disk(folder, error)}"

    def _discard(self, folder: Path, step: int, fault: str) -> None:
        discard_staged(folder)
        self.num_failed += 1
        logger.warning("there is no checkpoint of step %d, training continues: %s", step, fault)

    def _upload(self, folder: Path, found: Checkpoint) -> None:
        """Copy this rank's part in another thread."""
        is_done = threading.Event()

        def upload(staged: Path) -> None:
            upload_staged(staged, self.run_folder, patience_s=self.patience_s)
            is_done.set()

        self._pending = PendingUpload(found=found, is_done=is_done)
        manifest = found.manifest
        self.report({"step": manifest.step, **manifest.metrics}, folder, upload)

    def _prune(self) -> None:
        if self.engine.rank == 0:
            self.stored.prune()
