"""Settings of the checkpoints: when to save, and which to keep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from rm_ray.config.checks import require
from rm_ray.config.fields import MAY_CHANGE

METRICS = ("accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin")
"""Metrics of comparisons, in training and in evaluation."""

LIST_METRICS = ("best_of_k", "kendall_tau")
"""Metrics of evaluations in which some group has more than two responses."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save the training state, and which checkpoints to keep."""

    every_steps: Annotated[int, MAY_CHANGE] = 0
    """Save a checkpoint every N steps; 0 saves only after the last step."""

    keep: Annotated[int, MAY_CHANGE] = 2
    """Number of checkpoints to keep, at least 2: the newest ones, or with keep_best_by the newest
    one and the best."""

    keep_best_by: str | None = None
    """Metric that ranks checkpoints ('eval/rm/accuracy', 'eval/rm/loss', ...; for lists
    'eval/rm/best_of_k' and 'eval/rm/kendall_tau' too; 'eval/NAME/accuracy', 'eval/NAME/score' and
    so on of a set in evaluation.sets); none keeps the newest. An eval metric is measured at each
    checkpoint."""

    storage_patience_s: Annotated[float, MAY_CHANGE] = 600.0
    """Seconds to retry copying a checkpoint while run.storage_path fails. After that the run fails,
    and its last state stays on the workers' disks."""

    def __post_init__(self) -> None:
        every, keep, metric = self.every_steps, self.keep, self.keep_best_by
        patience = self.storage_patience_s
        require(patience >= 0, "checkpoint.storage_patience_s", patience, "at least 0")
        require(every >= 0, "checkpoint.every_steps", every, "at least 0")
        require(keep >= 2, "checkpoint.keep", keep, "at least 2, so that one is a fallback")
        known = [f"eval/rm/{name}" for name in (*METRICS, *LIST_METRICS)]
        known += [f"train/rm/{name}" for name in METRICS]
        rule = f"one of {', '.join(known)}, or of eval/NAME/ with a set of evaluation.sets"
        is_known = metric is None or metric in known or _OF_A_SET.fullmatch(metric) is not None
        require(is_known, "checkpoint.keep_best_by", metric, rule)

    @property
    def ranking_set(self) -> str | None:
        """The held-out set whose metric ranks checkpoints; None if there is none."""
        parts = (self.keep_best_by or "").split("/")
        return parts[1] if parts[0] == "eval" else None


_OF_A_SET = re.compile(
    rf"eval/(?!rm/)[a-z0-9_-]+/"
    rf"({'|'.join((*METRICS, *LIST_METRICS))}|score|(score|accuracy)_on/[a-z0-9_.-]+)"
)
"""Metrics of a named set: those of all sets, a benchmark's averages, and accuracy by source."""
