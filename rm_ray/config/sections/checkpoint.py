"""Settings of the checkpoints: when to save, and which to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rm_ray.config.checks import require
from rm_ray.config.fields import MAY_CHANGE

METRICS = ("accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin")
"""Metrics of pairs, in training and in evaluation."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save the training state, and which checkpoints to keep."""

    every_steps: Annotated[int, MAY_CHANGE] = 0
    """Save a checkpoint every N steps; 0 saves only after the last step."""

    keep: Annotated[int, MAY_CHANGE] = 2
    """Number of checkpoints to keep, at least 2: the newest ones, or with keep_best_by the newest
    one and the best."""

    keep_best_by: str | None = None
    """Metric that ranks checkpoints ('eval/rm/accuracy', 'eval/rm/loss', ...); none keeps the
    newest. An eval metric is measured at each checkpoint."""

    storage_patience_s: Annotated[float, MAY_CHANGE] = 600.0
    """Seconds to retry copying a checkpoint while run.storage_path fails. After that the run fails,
    and its last state stays on the workers' disks."""

    def __post_init__(self) -> None:
        every, keep, metric = self.every_steps, self.keep, self.keep_best_by
        patience = self.storage_patience_s
        require(patience >= 0, "checkpoint.storage_patience_s", patience, "at least 0")
        require(every >= 0, "checkpoint.every_steps", every, "at least 0")
        require(keep >= 2, "checkpoint.keep", keep, "at least 2, so that one is a fallback")
        known = [f"{part}/rm/{name}" for part in ("eval", "train") for name in METRICS]
        rule = f"one of {', '.join(known)}"
        require(metric is None or metric in known, "checkpoint.keep_best_by", metric, rule)
