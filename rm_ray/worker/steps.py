"""One rank's training steps: trained on or skipped, counted, and recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.plan import Steps
from rm_ray.checkpoint.content import TrainingState
from rm_ray.checkpoint.stored import StoredCheckpoints
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.collectives import split_votes, sum_with_votes
from rm_ray.train.progress import progress_line
from rm_ray.train.step import RankGradients, StepMetrics, accumulate_gradients, check_step
from rm_ray.worker.build import Compute
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.feed import ready_steps
from rm_ray.worker.recorder import Recorder
from rm_ray.worker.stopping import Stopping

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepTrainer:
    """Trains on this rank's share of each step, together with the other ranks."""

    steps: Steps
    compute: Compute
    state: TrainingState
    stored: StoredCheckpoints
    clocks: Clocks
    recorder: Recorder
    stopping: Stopping
    heartbeat: Heartbeat
    unit: str
    """What the plan's groups are called."""

    def stream(self, steps: Iterable[list[LoadedMicroBatch]]) -> Iterator[list[ReadyMicroBatch]]:
        """Yield this rank's micro-batches of each step, on the device."""
        progress = self.state.progress
        return self.clocks.count_waits(
            ready_steps(
                steps, self.compute.collator, self.heartbeat, "training", lambda: progress.step + 1
            )
        )

    def take_or_skip(self, micro_batches: list[ReadyMicroBatch]) -> None:
        """Train on a step, or skip it if its loss was not finite in an earlier attempt.

        Raises:
            NonFiniteLossError: as ``check_step``.
        """
        if self.state.progress.step in self.state.skipped:
            self.state.progress.step += 1
            logger.warning("step %d is left out: its loss is not finite", self.state.progress.step)
        else:
            self._take(micro_batches)

    def _take(self, micro_batches: list[ReadyMicroBatch]) -> None:
        """Take one optimizer step and record its metrics."""
        progress = self.state.progress
        started = time.monotonic()
        learning_rate = self.compute.learning_rate(progress.step)
        measured = self._update(micro_batches, learning_rate)
        for micro_batch in micro_batches:
            plan = micro_batch.loaded.plan
            self.state.ledger.add(plan.groups[plan.weights > 0])
        seconds = self.clocks.end_step(measured.groups, time.monotonic() - started)
        progress.step += 1
        progress.episode += measured.groups.count
        metrics = self._metrics(measured, learning_rate, seconds)
        self.recorder.add("train", metrics)
        self.recorder.show(progress_line(progress, self.steps.total, metrics, unit=self.unit))

    def _update(self, micro_batches: list[ReadyMicroBatch], learning_rate: float) -> StepMetrics:
        """Update the weights, and count the votes to stop in the same all-reduce."""
        engine = self.compute.engine
        gradients = accumulate_gradients(
            engine,
            self.compute.objective,
            micro_batches,
            num_groups=self.steps.size(self.state.progress.step),
            flops=self.compute.throughput.count(micro_batches),
            on_micro_batch=self.heartbeat.beat,
            keeps_losses=self.state.losses is not None,
        )
        ballot = self.stopping.votes()
        together = sum_with_votes(gradients.sums, ballot)
        numbers, grad_norm = engine.step(learning_rate, together)
        sums, votes = split_votes(numbers, len(ballot))
        measured = check_step(gradients, sums, grad_norm)
        self._keep_losses(gradients)
        self.stopping.decide(votes)
        return measured

    def _keep_losses(self, gradients: RankGradients) -> None:
        """Keep the losses of this rank's pairs, if the run does; the device has finished them."""
        if self.state.losses is None:
            return
        plans = [micro_batch.loaded.plan for micro_batch in gradients.micro_batches]
        counts = np.concatenate([plan.weights for plan in plans]) > 0
        self.state.losses.add(
            self.state.progress.step // self.steps.per_epoch,
            np.concatenate([plan.groups for plan in plans])[counts],
            torch.cat([*gradients.losses]).cpu().numpy()[counts],
        )

    def _metrics(
        self, measured: StepMetrics, learning_rate: float, seconds: float
    ) -> dict[str, float]:
        progress, clocks = self.state.progress, self.clocks
        return {
            "episode": float(progress.episode),
            "epoch": progress.episode / self.steps.num_groups,
            **measured.groups.means("train/rm"),
            "train/rm/lr": learning_rate,
            "train/rm/grad_norm": measured.grad_norm,
            **self.compute.throughput.metrics(
                measured.groups, seconds=seconds, waited=clocks.data_wait
            ),
            "perf/goodput": clocks.goodput,
            "perf/checkpoint_seconds": progress.spent.get("checkpoints", 0.0),
            "perf/checkpoint_wait_seconds": clocks.checkpoint_wait,
            "perf/steps_since_checkpoint": progress.step - self.stored.last_step,
        }
