"""Checkpoints for the training loop: restoring the newest one, and saving the next."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from rm_ray.checkpoint.content import CheckpointContent, TrainingState, count_writers
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.checkpoint.restore import restore_checkpoint
from rm_ray.checkpoint.save import Checkpointer, Report
from rm_ray.checkpoint.stored import StoredCheckpoints
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.late_evaluations import LateEvaluations
from rm_ray.runs.manifest import Checkpoint
from rm_ray.runs.retention import HubHold
from rm_ray.storage import Storage
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.collectives import gather_objects
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
    return Checkpointer(
        run_folder=job.run_folder,
        run_key=job.run_key,
        engine=engine,
        attempt=job.attempt,
        patience_s=job.config.checkpoint.storage_patience_s,
        stored=stored_checkpoints(
            job.run_folder, job.config, attempt=job.attempt, last_step=job.steps.total
        ),
        report=report,
        on_wait=on_wait,
    )


def stored_checkpoints(
    run_folder: Storage, config: TrainConfig, *, attempt: int, last_step: int
) -> StoredCheckpoints:
    """Return the list of a run's checkpoints, which the Hub and the evaluator may hold."""
    late = LateEvaluations(run_folder=run_folder, config=config, last_step=last_step)
    hold = HubHold(
        run_folder=run_folder,
        hub=config.hub,
        best_by=config.checkpoint.keep_best_by,
        last_step=last_step,
    )

    def find_held(intact: Sequence[Checkpoint]) -> set[str]:
        pending = late.choose_held(intact)  # first: one evaluated from here on has its metrics
        return pending | hold.names(late.add_metrics(intact))

    return StoredCheckpoints(
        run_folder=run_folder,
        config=config.checkpoint,
        attempt=attempt,
        find_held=find_held,
        add_metrics=late.add_metrics,
    )


def restore(
    job: TrainJob, found: Checkpoint | None, engine: Engine, stored: StoredCheckpoints
) -> TrainingState:
    """Return the state to train from: new, or restored from ``found`` together with the engine.

    Every rank calls it.
    """
    ledger, losses = Ledger.empty(job.steps.num_groups), None
    if job.config.run.keep_pair_losses:
        losses = PairLosses.empty(job.steps.num_epochs, job.steps.num_groups)
    if found is None:
        return TrainingState(ledger=ledger, skipped=job.skipped, losses=losses)
    state = restore_checkpoint(job.run_folder, found, engine, base_hash=job.base_hash)
    state.skipped |= job.skipped
    logger.info("resumed from the checkpoint of step %d", state.progress.step)
    if engine.rank > 0:
        # Rank 0 alone keeps the counts and losses of earlier attempts.
        state.ledger, state.losses = ledger, losses
        return state
    state.losses = losses and (state.losses or losses)
    stored.resume(found)
    if job.config.run.deterministic:
        warn_of_other_workers(found, engine.world_size)
    return state


def with_base_hash(job: TrainJob) -> TrainJob:
    """Return the job with the hash of its base model, if checkpoints depend on that.

    The driver leaves it empty while the Hub is away. Once the model is loaded, its files are on
    this machine. Every rank calls it.
    """
    if job.base_hash or job.config.trains_all:
        return job
    from rm_ray.publish.base_hash import hash_base
    from rm_ray.publish.hub import HubAwayError

    found = ""
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found = hash_base(job.config.model)
        except HubAwayError as error:
            logger.warning("checkpoints do not say which base model they belong to: %s", error)
    return replace(job, base_hash=gather_objects(found)[0])


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
                base_hash=self.job.base_hash,
                reference_rewards=self.score_reference_groups(),
            )
            self.clocks.checkpoint_wait += self.checkpointer.save(content, self._metrics(step))

    def finish(self) -> None:
        """Wait until the last checkpoint is in the run's folder; every rank calls it."""
        with self.clocks.spending("checkpoints"):
            self.checkpointer.finish()

    def score_reference_groups(self) -> dict[str, Any]:
        """Score the reference pairs, for comparison with clients; every rank calls it."""
        return self.job.reference_groups.score(
            self.compute.engine,
            self.compute.collator,
            tokens_per_pass=self.job.config.batch.tokens_per_micro_batch,
        )

    def _metrics(self, step: int) -> dict[str, float]:
        history = self.state.history
        evaluated = history.last("eval") if self.schedule.evaluated_at == step else {}
        return {**history.last("train"), **evaluated}
