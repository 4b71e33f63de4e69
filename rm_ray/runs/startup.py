"""Time from the command to the first optimizer step, by phase."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, kw_only=True)
class Startup:
    """When each startup phase ended, by the clock of its machine; passed on to the workers."""

    began: float = field(default_factory=time.time)
    """Start of the command in Unix seconds."""
    ended: dict[str, float] = field(default_factory=dict)
    """End of each phase in Unix seconds, in order."""

    def end(self, phase: str) -> None:
        """Record the end of a phase; the next one starts now."""
        self.ended[phase] = time.time()

    @property
    def seconds(self) -> dict[str, float]:
        """Length of each phase, in order."""
        times = [self.began, *self.ended.values()]
        lengths = [after - before for before, after in pairwise(times)]
        return dict(zip(self.ended, lengths, strict=True))


def describe_startup(seconds: dict[str, float]) -> str:
    """Format the phases as one line."""
    phases = ", ".join(f"{phase} {length:.1f}" for phase, length in seconds.items())
    return f"first step after {sum(seconds.values()):.1f} s: {phases}"
