"""The training loop's interface to whatever started its ranks: Ray Train, or a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ray.train
from ray.train import CheckpointUploadMode

from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.storage import Storage


class StepStream(Protocol):
    """One rank's share of a plan, such as a ``RankStream``."""

    def steps(self, first_step: int, num_steps: int) -> Iterator[list[LoadedMicroBatch]]:
        """Yield this rank's micro-batches of each step from ``first_step`` to ``num_steps``."""


class RankContext(Protocol):
    """A rank's view of its group. Every rank calls each method equally often."""

    def dataset_shard(self, name: str) -> StepStream:
        """Return this rank's share of a dataset: ``train``, ``eval`` or ``eval/NAME``."""

    def is_preempted(self) -> bool:
        """Return whether any rank's machine is about to be taken away; a barrier."""

    def report(
        self, metrics: dict[str, float], folder: Path, upload: Callable[[Path], None]
    ) -> None:
        """Upload a checkpoint's folder in another thread, then delete it."""


@dataclass(frozen=True, kw_only=True)
class RayRankContext:
    """The context of a Ray Train worker."""

    run_folder: Storage

    def dataset_shard(self, name: str) -> StepStream:
        """Return this rank's stream, once all ranks have requested theirs."""
        stream: StepStream = ray.train.get_dataset_shard(name)
        return stream

    def is_preempted(self) -> bool:
        """Return whether Ray is draining any rank's machine; a barrier."""
        return ray.train.get_preemption_info() is not None

    def report(
        self, metrics: dict[str, float], folder: Path, upload: Callable[[Path], None]
    ) -> None:
        """Let Ray Train upload a checkpoint's folder in a separate thread, then delete it."""

        def copy(local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
            upload(Path(local.path))
            return ray.train.Checkpoint(
                self.run_folder.join(name), filesystem=self.run_folder.filesystem
            )

        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=folder.name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=copy,
            delete_local_checkpoint_after_upload=True,
        )
