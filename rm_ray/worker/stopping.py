"""Why and how a worker's attempt ends before the last step."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import ray.train

from rm_ray.tracking.heartbeat import RESIZED, more_pressing
from rm_ray.worker.state import WorkerState

logger = logging.getLogger(__name__)

PREEMPTED = "preempted"
"""Reason to stop: a machine is about to be taken away."""

RESIZE_AGAIN_S = 300.0
"""How long a run that could not save does not try to grow."""

ASK_EVERY_S = 5.0
"""How often Ray is asked whether a machine is."""


def wants_to_stop(state: WorkerState) -> bool:
    """Tell whether this rank knows of a reason to end this attempt."""
    reason = state.heartbeat.reason_to_stop
    if reason == RESIZED:
        return time.monotonic() > state.goes_on_until
    return reason is not None


def is_to_ask(state: WorkerState) -> bool:
    """Tell, on rank 0, whether it is time to ask Ray whether a machine is about to go."""
    return state.engine.rank == 0 and time.monotonic() - state.asked_at > ASK_EVERY_S


def decides_to_stop(state: WorkerState, wants: bool, asks: bool) -> bool:
    """Tell, on every rank alike, whether any rank wants to stop or Ray has a reason to.

    Ray is asked where any rank asks, by all of them at once: it is a barrier.
    """
    if asks:
        state.asked_at = time.monotonic()
        if ray.train.get_preemption_info() is not None:
            state.heartbeat.reason_to_stop = PREEMPTED
            return True
    return wants


def gives_up_evaluation(state: WorkerState) -> bool:
    """Tell, on every rank alike, whether the next attempt is to evaluate instead of this one."""
    votes = state.engine.any_rank(wants_to_stop(state), is_to_ask(state))
    return decides_to_stop(state, *votes) and state.progress.step < state.job.steps.total


def stop(state: WorkerState) -> dict[str, Any] | None:
    """End this attempt after a checkpoint, for the reason that any rank has; None to go on.

    It goes on at its last step, and where growing would throw away steps that cannot be saved.
    """
    step = state.progress.step
    if step == state.job.steps.total:
        return None
    state.checkpointer.finish()
    reasons = state.engine.gather_objects(
        (state.heartbeat.reason_to_stop, state.checkpointer.last_step)
    )
    reason = functools.reduce(more_pressing, (reason for reason, _ in reasons))
    _, saved = reasons[0]
    if reason == RESIZED and saved < step:
        logger.warning("there is room for more workers, but no checkpoint to go on from")
        state.is_stopping, state.goes_on_until = False, time.monotonic() + RESIZE_AGAIN_S
        return None
    return {"stopped": {"reason": reason, "step": step, "saved_step": saved}}
