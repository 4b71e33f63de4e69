"""The steps after which a run evaluates and saves."""

from __future__ import annotations

from dataclasses import dataclass

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.history import History


@dataclass(kw_only=True)
class Schedule:
    """Decides which steps are followed by an evaluation or a checkpoint."""

    last_step: int
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    evaluated_at: int = -1
    """Step of the last evaluation; -1 before the first."""

    @classmethod
    def of(cls, config: TrainConfig, last_step: int, history: History) -> Schedule:
        """Return the schedule of a run whose earlier attempts left ``history``."""
        evaluated = (record.step for record in history.records if record.kind == "eval")
        return cls(
            last_step=last_step,
            evaluation=config.evaluation,
            checkpoint=config.checkpoint,
            evaluated_at=max(evaluated, default=-1),
        )

    def is_checkpoint_due(self, step: int) -> bool:
        """Return whether to save after this step, even if the attempt does not stop."""
        return self._is_due(step, self.checkpoint.every_steps, at_end=True)

    def is_evaluation_due(self, step: int, *, is_stopping: bool = False) -> bool:
        """Return whether to score the held-out pairs after this step.

        An attempt that is stopping leaves this to the next attempt, except after the last step.
        An evaluator beside training scores checkpoints instead (``runs/late_evaluations.py``).
        """
        config = self.evaluation
        if config.where == "beside" or (is_stopping and step < self.last_step):
            return False
        if self._is_due(step, config.every_steps, at_end=config.at_end):
            return True
        ranks_checkpoints = (self.checkpoint.keep_best_by or "").startswith("eval/")
        return ranks_checkpoints and self.is_checkpoint_due(step)

    def is_evaluation_overdue(self, step: int) -> bool:
        """Return whether the previous attempt stopped at this step without evaluating it."""
        return step > 0 and self.evaluated_at != step and self.is_evaluation_due(step)

    def _is_due(self, step: int, every_steps: int, *, at_end: bool) -> bool:
        if step == self.last_step:
            return at_end
        return every_steps > 0 and step % every_steps == 0
