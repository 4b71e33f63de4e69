"""The progress and the speed of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rm_ray.data.cache.group_tokens import TokenCounts


@dataclass(kw_only=True)
class Progress:
    """The position of a run and its speed so far; saved with the weights."""

    step: int = 0
    """Optimizer steps completed."""
    episode: int = 0
    """Groups trained on."""
    seconds: float = 0.0
    """Time since the first step began, over all attempts."""
    timed_groups: int = 0
    """Groups in the steps that count for the speed: all but each attempt's first."""
    timed_tokens: int = 0
    timed_distinct_tokens: int = 0
    timed_computed_tokens: int = 0
    timed_flops: float = 0.0
    """FLOPs that the groups need, excluding overhead such as padding."""
    timed_seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds of steps, data wait, evaluation and checkpoints, excluding lost work."""

    def add_timed(self, groups: int, tokens: TokenCounts, flops: float, seconds: float) -> None:
        """Count a step for the speed."""
        self.timed_groups += groups
        self.timed_tokens += tokens.all
        self.timed_distinct_tokens += tokens.distinct
        self.timed_computed_tokens += tokens.computed
        self.timed_flops += flops
        self.timed_seconds += seconds

    @property
    def pairs_per_second(self) -> float:
        """Groups per second in steady state, excluding evaluation and checkpoints."""
        return self.timed_groups / self.timed_seconds if self.timed_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all conversations per second in steady state."""
        return self.timed_tokens / self.timed_seconds if self.timed_seconds else 0.0

    @property
    def distinct_tokens_per_second(self) -> float:
        """Tokens per second in steady state, counting a group's shared prefix once."""
        return self.timed_distinct_tokens / self.timed_seconds if self.timed_seconds else 0.0

    @property
    def flops_per_second(self) -> float:
        """FLOPs that the groups need per second in steady state."""
        return self.timed_flops / self.timed_seconds if self.timed_seconds else 0.0

    @property
    def computed_over_distinct_tokens(self) -> float:
        """Computed token positions per distinct token."""
        return self.timed_computed_tokens / max(self.timed_distinct_tokens, 1)


def progress_line(
    progress: Progress, num_steps: int, metrics: dict[str, float], *, unit: str = "pairs"
) -> str:
    """Return a run's live progress line."""
    speed = metrics["perf/pairs_per_second"]
    steps_left = num_steps - progress.step
    pairs_a_step = progress.episode / max(progress.step, 1)
    left = steps_left * pairs_a_step / (progress.pairs_per_second or speed)
    return (
        f"step {progress.step}/{num_steps} · episode {progress.episode:,} · "
        f"{''.join(_figures(metrics))}{speed:.1f} {unit}/s · {_clock(left)} left"
    )


_FIGURES = {"loss": ".4f", "accuracy": ".3f", "reward_margin": "+.3f"}


def _figures(metrics: dict[str, float]) -> Iterator[str]:
    """Yield the figures that the data give: scores alone have no accuracy."""
    for name, form in _FIGURES.items():
        if (value := metrics.get(f"train/rm/{name}")) is not None:
            yield f"{name.removeprefix('reward_')} {value:{form}} · "


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
