"""Settings of the optimizer: AdamW, its schedule and the length of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from rm_ray.config.checks import require
from rm_ray.config.fields import MAY_CHANGE


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, its learning-rate schedule, and how long to train."""

    learning_rate: float = 3e-6
    """Peak learning rate."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""

    eps: float = 1e-8
    """Term added to AdamW's denominator."""

    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; vectors (norms, biases) are not decayed."""

    schedule: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "linear"
    """Learning-rate schedule over all steps of the run."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0 to its peak (none with 'constant')."""

    max_grad_norm: float = 1.0
    """Global norm to clip gradients to; 0 disables clipping."""

    max_skipped_steps: Annotated[int, MAY_CHANGE] = 0
    """Maximum number of steps to skip because their loss or gradient is not finite. The run resumes
    from its newest checkpoint without them; with 0 the first such step ends it."""

    epochs: int = 1
    """Passes over the training pairs."""

    max_episodes: int | None = None
    """Stop after this many pairs, even in the middle of an epoch; none trains for all epochs."""

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(0 < rate < math.inf, "optimizer.learning_rate", rate, "above 0 and finite")
        in_range = all(0 <= beta < 1 for beta in self.betas)
        require(in_range, "optimizer.betas", self.betas, "two numbers of at least 0 and below 1")
        require(0 < self.eps < math.inf, "optimizer.eps", self.eps, "above 0 and finite")
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"optimizer.{name}", value, "at least 0 and finite")
        skipped = self.max_skipped_steps
        require(skipped >= 0, "optimizer.max_skipped_steps", skipped, "at least 0")
        require(self.epochs >= 1, "optimizer.epochs", self.epochs, "at least 1")
        limit = self.max_episodes
        require(limit is None or limit >= 1, "optimizer.max_episodes", limit, "at least 1")
        require(
            self.schedule != "constant" or self.warmup_steps == 0,
            "optimizer.warmup_steps",
            self.warmup_steps,
            "0 with schedule 'constant' (use 'constant_with_warmup')",
        )
