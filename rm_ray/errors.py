"""Errors shared by the packages, and how to find them inside Ray's."""

from __future__ import annotations

import errno
from collections.abc import Iterator

REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
)
"""Errors of a healthy system, which a retry does not cure. ENOENT is excluded, because a lost
network mount looks like an empty folder."""


def is_refusal(error: OSError) -> bool:
    """Return whether the system rejects a request that a retry cannot make succeed."""
    return error.errno in REFUSALS


class InputError(ValueError):
    """The user's input is unusable.

    The message is one paragraph: the field or row, its value, the rule it breaks, what to do.
    """


class TrainingError(RuntimeError):
    """Training started and failed; the run's checkpoints are unchanged."""


def find_final_error(error: BaseException | None) -> InputError | TrainingError | None:
    """Return our own error from the chain that Ray wraps around a task's exception."""
    for inner in _chain(error):
        if isinstance(inner, InputError):
            return InputError(str(inner.args[0]).split("\n")[0])  # Ray Data appends lines
        if isinstance(inner, TrainingError):
            return TrainingError(str(inner.args[0]))
    return None


def find_lost_error(error: BaseException | None) -> LostError | None:
    """Return the LostError that a worker raised, without Ray's wrapping."""
    return next((inner for inner in _chain(error) if type(inner) is LostError), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        inside = (getattr(error, name, None) for name in ("_base_exc", "cause", "__cause__"))
        error = next((one for one in inside if isinstance(one, BaseException)), None)


class StoppedError(RuntimeError):
    """An attempt stopped on request, after saving a checkpoint if possible."""

    def __init__(self, reason: str, step: int, saved_step: int | None) -> None:
        found = f"; its newest checkpoint is from step {saved_step}" if saved_step else ""
        super().__init__(f"{reason} at step {step}{found}")
        self.reason, self.step, self.saved_step = reason, step, saved_step


class LostError(RuntimeError):
    """An attempt failed; the next one may get further."""

    def __init__(
        self,
        cause: str,
        signature: str = "",
        skips: int | None = None,
        *,
        is_outage: bool = False,
    ) -> None:
        super().__init__(cause)
        self.is_outage = is_outage
        """Whether an external service does not answer, possibly for long."""
        self.skips = skips
        """Step that the next attempt must skip; None if no step is at fault."""
        self.cause = cause
        """What happened: one line or a traceback."""
        self.signature = signature
        """Identifies an error in code or data; empty if a process was lost."""


class MlflowAwayError(Exception):
    """MLflow does not answer, or rejects a request."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
