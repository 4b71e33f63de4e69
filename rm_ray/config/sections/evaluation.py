"""Settings of the evaluations on held-out pairs."""

from __future__ import annotations

from dataclasses import dataclass

from rm_ray.config.checks import require


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When to score the held-out pairs, and how many to show."""

    every_steps: int = 0
    """Evaluate every N steps; 0 disables it."""

    at_end: bool = True
    """Evaluate after the last step."""

    sample_rows: int = 16
    """Number of held-out pairs to show after each evaluation, with texts and rewards."""

    def __post_init__(self) -> None:
        every, rows = self.every_steps, self.sample_rows
        require(every >= 0, "evaluation.every_steps", every, "at least 0")
        require(rows >= 0, "evaluation.sample_rows", rows, "at least 0")
