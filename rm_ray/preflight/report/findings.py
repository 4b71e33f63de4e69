"""The findings of a preflight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.report.document import findings_to_json
from rm_ray.preflight.report.page import describe_estimate, describe_verdicts
from rm_ray.preflight.run_estimate import RunEstimate


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The verdicts of all checks and the estimate of the run."""

    verdicts: tuple[Verdict, ...]

    estimate: RunEstimate | None = None
    """None if the input is invalid or the storage is not writable."""

    error: str = ""
    """Why the input is invalid; empty if it is not."""

    @property
    def has_failed(self) -> bool:
        """Whether any check failed."""
        return any(verdict.outcome == "failed" for verdict in self.verdicts)

    def describe(self) -> str:
        """Return the report as text."""
        pages = [describe_verdicts(self.verdicts)]
        if self.estimate is not None:
            pages.append(describe_estimate(self.estimate))
        return "\n\n".join(["", *pages])

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return findings_to_json(self.verdicts, self.estimate) | {"error": self.error or None}
