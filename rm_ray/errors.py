"""The error that is the user's to mend, and the one that ends a training."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be trained on.

    The message is one paragraph: the field or row, its value, the rule it breaks, what to do.
    """


class TrainingError(RuntimeError):
    """Training began and could not go on; the run's checkpoints are as they were."""


def find_final_error(error: BaseException | None) -> InputError | TrainingError | None:
    """Return our own error in the chain that Ray wraps around what a task raises."""
    while error is not None:
        if isinstance(error, InputError):
            return InputError(str(error.args[0]).split("\n")[0])  # Ray Data adds lines
        if isinstance(error, TrainingError):
            return TrainingError(str(error.args[0]))
        inside = (getattr(error, name, None) for name in ("_base_exc", "cause", "__cause__"))
        error = next((found for found in inside if found is not None), None)
    return None


class StoppedError(RuntimeError):
    """An attempt at a run ended because it was asked to, with a checkpoint where it could."""

    def __init__(self, reason: str, step: int, saved_step: int | None = None) -> None:
        saved = step if saved_step is None else saved_step
        super().__init__(f"{reason} at step {step}; its newest checkpoint is of step {saved}")
        self.reason, self.step = reason, step


class LostError(RuntimeError):
    """An attempt at a run ended before its time; another may get further."""

    def __init__(self, cause: str, signature: str = "", skips: int | None = None) -> None:
        super().__init__(cause)
        self.skips = skips
        """The step that the next attempt is to leave out, if that is the remedy."""
        self.cause = cause
        """What happened, in a line or a traceback."""
        self.signature = signature
        """What tells an error in code or data from another; empty where a process was lost."""
