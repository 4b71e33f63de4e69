"""The verdict of a check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from rm_ray.errors import InputError

Outcome = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of a check."""

    name: str
    outcome: Outcome
    found: str
    remedy: str = ""
    """What to do about it; empty if the check passed."""


def ok(name: str, found: str) -> Verdict:
    """Return a passed check."""
    return Verdict(name=name, outcome="ok", found=found)


def warn(name: str, found: str, remedy: str) -> Verdict:
    """Return a warning: training works, but perhaps not as intended."""
    return Verdict(name=name, outcome="warning", found=found, remedy=remedy)


def fail(name: str, found: str, remedy: str) -> Verdict:
    """Return a failure: training would not work."""
    return Verdict(name=name, outcome="failed", found=found, remedy=remedy)


def fail_on_input_error(name: str, check: Callable[[], Verdict], *, remedy: str) -> Verdict:
    """Return a check's verdict, or a failure if it raises an ``InputError``."""
    try:
        return check()
    except InputError as error:
        return fail(name, str(error), remedy)


def warn_at_most(verdict: Verdict) -> Verdict:
    """Return a failure as a warning, because another cluster will train."""
    if verdict.outcome == "ok":
        return verdict
    return replace(verdict, outcome="warning", remedy="check again on the cluster of this run")
