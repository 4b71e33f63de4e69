"""Exit statuses of the commands, and the final log line that explains them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import IntEnum

from rm_ray.errors import InputError, LostError, StoppedError, TrainingError
from rm_ray.logs import log_to_stdout

logger = logging.getLogger(__name__)


RERUN = "interrupted; rerun the same command to resume"


class ExitStatus(IntEnum):
    """Exit status of a command."""

    DONE = 0
    FAILED = 1
    """Training or a check failed, or something could not be sent."""
    WRONG_INPUT = 2
    """An input is unusable; tyro and argparse use the same status for a wrong option."""
    INTERRUPTED = 130
    """Ctrl-C: 128 plus the signal's number, the shell convention."""
    TERMINATED = 143
    """SIGTERM."""


STOPS = {"interrupted": ExitStatus.INTERRUPTED, "terminated": ExitStatus.TERMINATED}
"""Exit status by the reason of a StoppedError."""


def run_command(
    action: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    *,
    on_interrupt: str | None = None,
) -> int:
    """Run a command, logging to the terminal; return its exit status.

    An error the user can fix is logged as one line; any other is raised. ``on_interrupt`` is
    logged after Ctrl-C.
    """
    log_to_stdout()
    try:
        return action(arguments)
    except (TrainingError, LostError) as error:
        logger.error("error: %s", error)
        return ExitStatus.FAILED
    except StoppedError as stopped:
        logger.info("%s; rerun the same command to resume", stopped)
        return STOPS[stopped.reason]
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return ExitStatus.WRONG_INPUT
    except KeyboardInterrupt:
        if on_interrupt is not None:
            logger.info("%s", on_interrupt)
        return ExitStatus.INTERRUPTED
