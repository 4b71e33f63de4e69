"""What passes between the command and the first optimizer step, by phase."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Startup:
    """When each phase ended, by the clock of the machine it ended on; goes to the workers."""

    began: float = field(default_factory=time.time)
    ended: dict[str, float] = field(default_factory=dict)

    def end(self, phase: str) -> None:
        """Note that a phase is over, and that the next one begins."""
        self.ended[phase] = time.time()

    @property
    def seconds(self) -> dict[str, float]:
        """Return the length of each phase, in their order."""
        times = [self.began, *self.ended.values()]
        lengths = [after - before for before, after in pairwise(times)]
        return dict(zip(self.ended, lengths, strict=True))


def describe_startup(seconds: dict[str, float]) -> str:
    """Return the phases in one line."""
    phases = ", ".join(f"{phase} {length:.1f}" for phase, length in seconds.items())
    return f"first step after {sum(seconds.values()):.1f} s: {phases}"
