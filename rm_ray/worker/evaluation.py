"""The evaluation of held-out pairs during training."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from rm_ray.evaluation.held_out import Evaluation, evaluate_held_out
from rm_ray.evaluation.held_out_set import HeldOutSet
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

_SHOWN = {
    "accuracy": ".4f", "score": ".4f", "best_of_k": ".4f", "kendall_tau": ".4f", "loss": ".4f",
    "reward_margin": "+.3f",
}  # fmt: skip
"""Metrics of the log line and their formats, where the data give them."""


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluation:
    """Scores this rank's share of the held-out sets, together with the other ranks."""

    job: TrainJob
    compute: Compute
    context: RankContext
    heartbeat: Heartbeat
    clocks: Clocks
    recorder: Recorder
    schedule: Schedule
    stopping: Stopping

    def run(self, step: int) -> None:
        """Evaluate the model after a step on every set, at most once per step; every rank calls it.

        If the attempt stops meanwhile, it records nothing, and the next attempt evaluates.
        """
        if not self.job.held_out or self.schedule.evaluated_at == step:
            return
        found: list[tuple[HeldOutSet, Evaluation]] = []
        with self.clocks.spending("evaluation"):
            for held_out in self.job.held_out:
                evaluation = self._score(held_out, step)
                if evaluation is None:
                    return
                found.append((held_out, evaluation))
        self.schedule.evaluated_at = step
        self.recorder.add_evaluation(found)
        for held_out, evaluation in found:
            logger.info("%s", describe_evaluation(held_out, evaluation, step, unit=self.job.unit))

    def _score(self, held_out: HeldOutSet, step: int) -> Evaluation | None:
        """Score one set; return None if the attempt stops meanwhile."""
        job, heartbeat = self.job, self.heartbeat
        if not held_out.is_default:
            groups = f"{held_out.steps.num_groups:,} {held_out.unit}"
            self.recorder.show(
                f"step {step}/{job.steps.total} · evaluating on {held_out.name}, {groups}"
            )
        heartbeat.enter("waiting", step)  # until every rank has requested its share
        stream = self.context.dataset_shard(held_out.dataset)
        evaluation = evaluate_held_out(
            self.compute.engine,
            self.compute.objective,
            ready_steps(
                stream.steps(0, held_out.steps.total),
                self.compute.collator,
                heartbeat,
                "evaluating",
                lambda: step,
            ),
            job.tokenizer,
            sample_rows=job.config.evaluation.sample_rows,
            prefix=held_out.prefix,
            on_micro_batch=heartbeat.beat,
            gives_up=lambda: self.stopping.interrupts_evaluation(step),
        )
        if evaluation is None:
            return None
        assert evaluation.num_groups == held_out.steps.num_groups
        return add_averages(held_out, evaluation)


def add_averages(held_out: HeldOutSet, evaluation: Evaluation) -> Evaluation:
    """Return an evaluation with the metrics that only its set has."""
    own = held_out.averages(evaluation.order, evaluation.groups)
    return replace(evaluation, metrics=evaluation.metrics | own)


def describe_evaluation(
    held_out: HeldOutSet, evaluation: Evaluation, step: int, *, unit: str
) -> str:
    """Return the log line of a set's evaluation; ``unit`` is what training's groups are called."""
    metrics, prefix = evaluation.metrics, held_out.prefix
    shown = (
        f"{name.removeprefix('reward_').replace('_', ' ')} {metrics[f'{prefix}/{name}']:{form}}"
        for name, form in _SHOWN.items()
        if f"{prefix}/{name}" in metrics
    )
    where = "" if held_out.is_default else f" on {held_out.name}"
    groups = f"{evaluation.num_groups} {unit if held_out.is_default else held_out.unit}"
    return f"evaluation at step {step}{where}: {', '.join(shown)} over {groups}"
