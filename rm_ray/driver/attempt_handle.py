"""An attempt that is under way, as its driver knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rm_ray.runs.attempts import Attempt, Ending
from rm_ray.runs.startup import Startup


@dataclass(kw_only=True)
class AttemptHandle:
    """An attempt that is under way, as the driver knows it."""

    startup: Startup = field(default_factory=Startup)
    number: int = 1
    earlier: list[Attempt] = field(default_factory=list)
    """The attempts before this one."""
    tell: Callable[[dict[str, Any]], None] = lambda _: None
    """Tells the supervisor what has changed, by the names of ``Attempt``'s fields."""
    end: Callable[[Ending, str], None] = lambda *_: None
    """Ends this attempt at once, for a cause."""
    _ask: Callable[[str], None] | None = None
    _reason: str | None = None

    @property
    def run_began(self) -> float:
        """When the run would have begun, had it gone on without pause between its attempts."""
        return self.startup.began - sum(attempt.seconds for attempt in self.earlier)

    @property
    def skipped(self) -> frozenset[int]:
        """Steps that are left out."""
        return frozenset(a.skips for a in self.earlier if a.skips is not None)

    def stop(self, reason: str) -> bool:
        """Have the workers save and stop; tell whether there are any to ask."""
        self._reason = reason
        if self._ask is not None:
            self._ask(reason)
        return self._ask is not None

    @contextmanager
    def stoppable(self, ask: Callable[[str], None]) -> Iterator[None]:
        """Within it, there are workers to ask."""
        self._ask = ask
        if self._reason is not None:
            ask(self._reason)
        try:
            yield
        finally:
            self._ask = None
