"""The evaluation of held-out pairs during training."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.worker.build import Compute
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.context import RankContext
from rm_ray.worker.feed import ready_steps
from rm_ray.worker.job import TrainJob
from rm_ray.worker.recorder import Recorder
from rm_ray.worker.schedule import Schedule
from rm_ray.worker.stopping import Stopping

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluation:
    """Scores this rank's share of the held-out pairs, together with the other ranks."""

    job: TrainJob
    compute: Compute
    context: RankContext
    heartbeat: Heartbeat
    clocks: Clocks
    recorder: Recorder
    schedule: Schedule
    stopping: Stopping

    def run(self, step: int) -> None:
        """Evaluate the model after a step, at most once per step; every rank calls it.

        If the attempt stops meanwhile, it records nothing, and the next attempt evaluates.
        """
        job = self.job
        if job.eval_steps is None or self.schedule.evaluated_at == step:
            return
        with self.clocks.spending("evaluation"):
            self.heartbeat.enter("waiting", step)  # until every rank has requested its share
            stream = self.context.dataset_shard("eval")
            evaluation = evaluate_held_out(
                self.compute.engine,
                ready_steps(
                    stream.steps(0, job.eval_steps.total),
                    self.compute.collator,
                    self.heartbeat,
                    "evaluating",
                    lambda: step,
                ),
                job.tokenizer,
                sample_rows=job.config.evaluation.sample_rows,
                on_micro_batch=self.heartbeat.beat,
                gives_up=lambda: self.stopping.interrupts_evaluation(step),
            )
        if evaluation is None:
            return
        assert evaluation.num_pairs == job.eval_steps.num_pairs
        self.schedule.evaluated_at = step
        self.recorder.add_evaluation(evaluation, job.eval_labels)
        metrics = evaluation.metrics
        logger.info(
            "evaluation at step %d: accuracy %.4f, loss %.4f, margin %+.3f over %d pairs",
            step,
            metrics["eval/rm/accuracy"],
            metrics["eval/rm/loss"],
            metrics["eval/rm/reward_margin"],
            evaluation.num_pairs,
        )
