"""The error that is the user's to mend, and the one that ends a training."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be trained on.

    The message is one paragraph: the field or row, its value, the rule it breaks, what to do.
    """


def find_input_error(error: BaseException | None) -> InputError | None:
    """Return the user's error in the chain that Ray wraps around what a task raises."""
    while error is not None:
        if isinstance(error, InputError):
            return InputError(str(error.args[0]))
        error = getattr(error, "cause", None) or error.__cause__
    return None


class TrainingError(RuntimeError):
    """Training began and could not go on; the run's checkpoints are as they were."""
