"""Attempts so far -> the delay before the next one, or the error that ends the command."""

from __future__ import annotations

from collections.abc import Sequence

from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.runs.attempts import Attempt
from rm_ray.supervisor.signals import INTERRUPTED, TERMINATED

DEATHS_WITHOUT_PROGRESS = 8
"""Consecutive attempts lost without progress after which the run fails."""

LONGEST_DELAY_S = 30.0

OUTAGE_DELAY_S = 5.0
"""Delay in seconds between attempts during an outage outside the run."""


def decide(attempts: Sequence[Attempt], *, patience_s: float) -> float:
    """Return the seconds to wait before the next attempt.

    Outages are retried for ``patience_s``. Once the run has trained, a refused input counts as an
    outage too.

    Raises:
        InputError: the latest attempt was refused.
        TrainingError: it failed for good, repeated an earlier error, or attempts make no progress.
        StoppedError: it was asked to stop.
    """
    latest = attempts[-1]
    out_since = _out_since(attempts)
    if out_since is not None and latest.updated - out_since < patience_s:
        return OUTAGE_DELAY_S
    if latest.ending == "refused":
        raise InputError(latest.cause)
    if latest.ending == "failed":
        raise TrainingError(latest.cause)
    if latest.ending == "stopped":
        if latest.cause in (INTERRUPTED, TERMINATED):
            raise StoppedError(latest.cause, latest.step, latest.saved_step)
        return 0.0
    if latest.skips is not None:
        return 0.0
    lost = _lost_without_progress(attempts)
    if latest.signature and any(
        earlier.signature == latest.signature for earlier in lost[1:] + _lost_at_its_step(attempts)
    ):
        raise TrainingError(
            f"the same error came twice at step {latest.step}, so the run stops:\n"
            f"{latest.cause.rstrip()}\nEarlier checkpoints are kept"
        )
    if len(lost) >= DEATHS_WITHOUT_PROGRESS:
        raise TrainingError(
            f"{len(lost)} attempts in a row were lost at step {latest.step}, the last one because "
            f"{latest.cause.rstrip()}. The checkpoints are kept; rerun the same command to retry"
        )
    return 0.0 if len(lost) == 1 else min(2.0 ** (len(lost) - 1), LONGEST_DELAY_S)


def _out_since(attempts: Sequence[Attempt]) -> float | None:
    """Return when the current outage began; None if the latest attempt did not end in one."""
    since = None
    for i in reversed(range(len(attempts))):
        attempt = attempts[i]
        has_trained = any(earlier.first_step is not None for earlier in attempts[: i + 1])
        if not (attempt.is_outage or (attempt.ending == "refused" and has_trained)):
            break
        since = attempt.began if attempt.first_step is None else attempt.updated
    return since


def _lost_without_progress(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the consecutive lost attempts since the run last made progress, latest first.

    Progress means starting from a later step than ever before: an attempt's last reported step is a
    second or two old, so it varies even if the same step fails.
    """
    lost: list[Attempt] = []
    for i in reversed(range(len(attempts))):
        if attempts[i].ending != "lost":
            break
        lost.append(attempts[i])
        begun = [earlier.first_step or 0 for earlier in attempts[:i]]
        if (attempts[i].first_step or 0) > max(begun, default=0):
            break
    return lost


def _lost_at_its_step(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Return the consecutive lost attempts before the latest that ended at the same step.

    They count even if the latest attempt started from a newer checkpoint.
    """
    latest, found = attempts[-1], []
    for earlier in reversed(attempts[:-1]):
        if earlier.ending != "lost":
            break
        if earlier.step == latest.step:
            found.append(earlier)
    return found
