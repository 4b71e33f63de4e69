"""Answers other than rewards: an HTTP status, and what the client should do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request gets no rewards. It travels between processes as a value."""

    status: int
    message: str

    retry_after_s: int | None = None
    """Seconds after which the same request may succeed."""


class RefusedError(Exception):
    """A request is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refuse(status: int, message: str, *, retry_after_s: int | None = None) -> RefusedError:
    """Return the exception that refuses a request."""
    return RefusedError(Refusal(status=status, message=message, retry_after_s=retry_after_s))
