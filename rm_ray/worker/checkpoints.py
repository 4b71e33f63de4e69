"""Checkpoints for the training loop: restoring the newest one, and saving the next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rm_ray.checkpoint.content import CheckpointContent, TrainingState, count_writers
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.restore import restore_checkpoint
from rm_ray.checkpoint.save import Checkpointer, Report
from rm_ray.checkpoint.stored import StoredCheckpoints
from rm_ray.runs.manifest import Checkpoint
from rm_ray.runs.retention import HubHold
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.engine import Engine
from rm_ray.worker.build import Compute
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.job import TrainJob
from rm_ray.worker.recorder import Recorder
from rm_ray.worker.schedule import Schedule

logger = logging.getLogger(__name__)


def build_checkpointer(
    job: TrainJob, engine: Engine, report: Report, *, on_wait: Callable[[], None]
) -> Checkpointer:
    """Return the checkpointer of a job."""
    config = job.config.checkpoint
    hold = HubHold(
        run_folder=job.run_folder,
        hub=job.config.hub,
        best_by=config.keep_best_by,
        last_step=job.steps.total,
    )
    return Checkpointer(
        run_folder=job.run_folder,
        run_key=job.run_key,
        engine=engine,
        attempt=job.attempt,
        patience_s=config.storage_patience_s,
        stored=StoredCheckpoints(
            run_folder=job.run_folder, config=config, attempt=job.attempt, find_held=hold.names
        ),
        report=report,
        on_wait=on_wait,
    )


def restore(
    job: TrainJob, found: Checkpoint | None, engine: Engine, stored: StoredCheckpoints
) -> TrainingState:
    """Return the state to train from: new, or restored from ``found`` together with the engine.

    Every rank calls it.
    """
    ledger = Ledger.empty(job.steps.num_pairs)
    if found is None:
        return TrainingState(ledger=ledger, skipped=job.skipped)
    state = restore_checkpoint(job.run_folder, found, engine)
    state.skipped |= job.skipped
    logger.info("resumed from the checkpoint of step %d", state.progress.step)
    if engine.rank > 0:
        state.ledger = ledger  # rank 0 alone keeps the counts of earlier attempts
        return state
    stored.resume(found)
    if job.config.run.deterministic:
        warn_of_other_workers(found, engine.world_size)
    return state


def warn_of_other_workers(found: Checkpoint, world_size: int) -> None:
    """Warn that weights will differ if another number of workers wrote the checkpoint."""
    previous = count_writers(found.manifest.files)
    if previous != world_size:
        logger.warning(
            "run.deterministic is true, but %d workers resume from a checkpoint of %d: weights "
            "will differ from those of an uninterrupted run. Set cluster.num_workers to %d",
            world_size,
            previous,
            previous,
        )


@dataclass(frozen=True, kw_only=True)
class Saver:
    """Saves the state of the current step, with the metrics that rank its checkpoint."""

    job: TrainJob
    compute: Compute
    state: TrainingState
    checkpointer: Checkpointer
    schedule: Schedule
    clocks: Clocks
    recorder: Recorder
    heartbeat: Heartbeat

    def save(self) -> None:
        """Save a checkpoint; every rank calls it."""
        step = self.state.progress.step
        with self.clocks.spending("checkpoints"):
            self.heartbeat.enter("saving", step)
            content = CheckpointContent(
                state=self.state,
                settings=self.job.config.to_dict(),
                plan_fingerprint=self.job.plan_fingerprint,
                mlflow_run_id=self.recorder.mlflow_run_id(),
                reference_rewards=self.score_reference_pairs(),
            )
            self.clocks.checkpoint_wait += self.checkpointer.save(content, self._metrics(step))

    def finish(self) -> None:
        """Wait until the last checkpoint is in the run's folder; every rank calls it."""
        with self.clocks.spending("checkpoints"):
            self.checkpointer.finish()

    def score_reference_pairs(self) -> dict[str, Any]:
        """Score the reference pairs, for comparison with clients; every rank calls it."""
        return self.job.reference_pairs.score(
            self.compute.engine,
            self.compute.collator,
            tokens_per_pass=self.job.config.batch.tokens_per_micro_batch,
        )

    def _metrics(self, step: int) -> dict[str, float]:
        history = self.state.history
        evaluated = history.last("eval") if self.schedule.evaluated_at == step else {}
        return {**history.last("train"), **evaluated}
