"""The error that is the user's to mend, and the one that ends a training."""

from __future__ import annotations

import errno
from collections.abc import Iterator

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell has it."""


REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
)
"""What a system answers that works: the same the next time, unlike where a disk or a network fails.
That a file is missing is not among them, since a storage that has gone has none."""


def is_refusal(error: OSError) -> bool:
    """Tell whether the system refuses what it is asked for, however often it is asked."""
    return error.errno in REFUSALS


class InputError(ValueError):
    """Something the user gave cannot be trained on.

    The message is one paragraph: the field or row, its value, the rule it breaks, what to do.
    """


class TrainingError(RuntimeError):
    """Training began and could not go on; the run's checkpoints are as they were."""


def find_final_error(error: BaseException | None) -> InputError | TrainingError | None:
    """Return our own error in the chain that Ray wraps around what a task raises."""
    for inner in _chain(error):
        if isinstance(inner, InputError):
            return InputError(str(inner.args[0]).split("\n")[0])  # Ray Data adds lines
        if isinstance(inner, TrainingError):
            return TrainingError(str(inner.args[0]))
    return None


def find_lost_error(error: BaseException | None) -> LostError | None:
    """Return what a worker itself raised of an attempt that is lost, with its words alone."""
    return next((inner for inner in _chain(error) if type(inner) is LostError), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        inside = (getattr(error, name, None) for name in ("_base_exc", "cause", "__cause__"))
        error = next((one for one in inside if isinstance(one, BaseException)), None)


class StoppedError(RuntimeError):
    """An attempt at a run ended because it was asked to, with a checkpoint where it could."""

    def __init__(self, reason: str, step: int, saved_step: int | None) -> None:
        found = f"; its newest checkpoint is of step {saved_step}" if saved_step else ""
        super().__init__(f"{reason} at step {step}{found}")
        self.reason, self.step, self.saved_step = reason, step, saved_step


class LostError(RuntimeError):
    """An attempt at a run ended before its time; another may get further."""

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
        """Whether something outside of the run does not answer, which may last."""
        self.skips = skips
        """The step that the next attempt is to leave out, if that is the remedy."""
        self.cause = cause
        """What happened, in a line or a traceback."""
        self.signature = signature
        """What tells an error in code or data from another; empty where a process was lost."""
