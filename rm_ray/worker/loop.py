"""A worker's training loop: steps, evaluations, checkpoints, and the final export."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.checkpoint.content import TrainingState
from rm_ray.checkpoint.save import Checkpointer
from rm_ray.runs.manifest import Checkpoint
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.step import NonFiniteLossError
from rm_ray.worker.build import Compute, build_compute
from rm_ray.worker.checkpoints import Saver, build_checkpointer, restore, with_base_hash
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.context import RankContext
from rm_ray.worker.evaluation import HeldOutEvaluation
from rm_ray.worker.finish import export, training_result
from rm_ray.worker.job import TrainJob
from rm_ray.worker.recorder import Recorder
from rm_ray.worker.schedule import Schedule
from rm_ray.worker.steps import StepTrainer
from rm_ray.worker.stopping import Stopping


def train_worker(
    job: TrainJob,
    found: Checkpoint | None,
    steps: Iterable[list[LoadedMicroBatch]],
    heartbeat: Heartbeat,
    channel: ChannelWriter | None,
    context: RankContext,
) -> dict[str, Any]:
    """Train on the remaining steps and export the model; return the content of ``result.json``.

    Every rank calls it. ``steps`` is this rank's share, from the step of the checkpoint ``found``.
    Only rank 0 has a ``channel``. If the attempt stops early, it returns ``stopped`` instead; if a
    loss is not finite, ``not_finite``.
    """
    compute = build_compute(job)
    job = with_base_hash(job)
    checkpointer = build_checkpointer(job, compute.engine, context.report, on_wait=heartbeat.beat)
    state = restore(job, found, compute.engine, checkpointer.stored)
    loop = TrainingLoop(
        job, compute, state, checkpointer, heartbeat=heartbeat, channel=channel, context=context
    )
    if found is not None:
        loop.recorder.replay()
    try:
        return loop.run(steps) or loop.finish()
    except NonFiniteLossError as error:
        # Every rank raises this, and a retry would fail the same way.
        checkpointer.finish()
        return {"not_finite": {"step": error.step, "groups": list(error.groups)}}


class TrainingLoop:
    """The order in which one rank trains, evaluates, saves and stops."""

    def __init__(
        self,
        job: TrainJob,
        compute: Compute,
        state: TrainingState,
        checkpointer: Checkpointer,
        *,
        heartbeat: Heartbeat,
        channel: ChannelWriter | None,
        context: RankContext,
    ) -> None:
        engine, last_step = compute.engine, job.steps.total
        self.job, self.compute, self.state = job, compute, state
        self.checkpointer, self.heartbeat = checkpointer, heartbeat
        self.schedule = Schedule.of(job.config, last_step, state.history)
        self.stopping = Stopping(
            heartbeat, context, rank=engine.rank, device=engine.device, last_step=last_step
        )
        self.clocks = Clocks(state.progress, heartbeat, job.startup, run_began=job.run_began)
        self.recorder = Recorder.of(job, state.history, self.clocks, heartbeat, channel)
        self.trainer = StepTrainer(
            steps=job.steps,
            compute=compute,
            state=state,
            stored=checkpointer.stored,
            clocks=self.clocks,
            recorder=self.recorder,
            stopping=self.stopping,
            heartbeat=heartbeat,
            unit=job.unit,
        )
        self.evaluation = HeldOutEvaluation(
            job=job,
            compute=compute,
            context=context,
            schedule=self.schedule,
            clocks=self.clocks,
            recorder=self.recorder,
            stopping=self.stopping,
            heartbeat=heartbeat,
        )
        self.saver = Saver(
            job=job,
            compute=compute,
            state=state,
            checkpointer=checkpointer,
            schedule=self.schedule,
            clocks=self.clocks,
            recorder=self.recorder,
            heartbeat=heartbeat,
        )

    def run(self, steps: Iterable[list[LoadedMicroBatch]]) -> dict[str, Any] | None:
        """Train on the remaining steps; return why the attempt stopped early, or None."""
        progress, schedule, stopping = self.state.progress, self.schedule, self.stopping
        self.clocks.start()
        if schedule.is_evaluation_overdue(progress.step):
            self.evaluation.run(progress.step)
            if not stopping.is_stopping and schedule.is_checkpoint_due(progress.step):
                self.saver.save()  # again, now with the evaluation's metrics
        if stopping.is_stopping and (stopped := self.stop()):
            return stopped
        for micro_batches in self.trainer.stream(steps):
            self.trainer.take_or_skip(micro_batches)
            if schedule.is_evaluation_due(progress.step, is_stopping=stopping.is_stopping):
                self.evaluation.run(progress.step)
            if stopping.is_stopping or schedule.is_checkpoint_due(progress.step):
                self.saver.save()
            if stopping.is_stopping and (stopped := self.stop()):
                return stopped
        return None

    def stop(self) -> dict[str, Any] | None:
        """End the attempt after its checkpoint; return why, or None if it continues."""
        step = self.state.progress.step
        if step == self.job.steps.total:
            return None
        self.checkpointer.finish()
        ending = self.stopping.end_attempt(step, self.checkpointer.stored.last_step)
        return None if ending is None else {"stopped": ending}

    def finish(self) -> dict[str, Any]:
        """Export the model; return the content of ``result.json``."""
        self.heartbeat.enter("exporting", self.state.progress.step)
        self.saver.finish()
        rewards = self.saver.score_reference_groups()
        exported = export(self.job, self.compute.engine, self.recorder, rewards)
        return training_result(
            self.state, self.compute, self.clocks, self.checkpointer, exported=exported
        )
