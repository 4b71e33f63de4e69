"""The decision to stop an attempt early: on preemption, to resize, or on a signal."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from rm_ray.tracking.heartbeat import RESIZED, Heartbeat, more_pressing
from rm_ray.train.collectives import any_rank, gather_objects
from rm_ray.worker.context import RankContext

logger = logging.getLogger(__name__)

PREEMPTED = "preempted"
"""Reason to stop: a machine is about to be taken away."""

RESIZE_AGAIN_S = 300.0
"""Seconds for which a run that could not save ignores room for more workers."""

CHECK_EVERY_S = 5.0
"""Seconds between the ranks' checks for preemption."""

NUM_VOTES = 2


class Stopping:
    """Decides whether this attempt ends after the current step, the same on every rank.

    Before each decision, every rank votes. An all-reduce counts the votes, during training the one
    of the step itself.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        context: RankContext,
        *,
        rank: int,
        device: torch.device,
        last_step: int,
    ) -> None:
        self._heartbeat, self._context = heartbeat, context
        self._rank, self._device, self._last_step = rank, device, last_step
        self._is_preempted = False
        self._checked_at = 0.0
        self._not_before = 0.0
        """The time before which room for more workers is not a reason to stop."""
        self.is_stopping = False
        """Whether this attempt ends after the current step."""

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop."""
        return PREEMPTED if self._is_preempted else self._heartbeat.reason_to_stop

    def votes(self) -> tuple[bool, bool]:
        """Return whether this rank wants to stop, and whether it wants a preemption check.

        Only rank 0 requests the check. All ranks then make it together, since it is a barrier.
        """
        reason, now = self.reason, time.monotonic()
        wants = now > self._not_before if reason == RESIZED else reason is not None
        return wants, self._rank == 0 and now - self._checked_at > CHECK_EVERY_S

    def decide(self, votes: Sequence[bool]) -> None:
        """Decide from the votes; each is true if any rank voted yes."""
        self.is_stopping = self._is_decided(votes)

    def interrupts_evaluation(self, step: int) -> bool:
        """Count votes, and return whether to stop now and leave the evaluation to the next attempt.

        Every rank calls it equally often. Nothing interrupts the evaluation after the last step.
        """
        votes = any_rank(self.votes(), self._device)
        if self._is_decided(votes) and step < self._last_step:
            self.is_stopping = True
        return self.is_stopping and step < self._last_step

    def end_attempt(self, step: int, saved_step: int) -> dict[str, Any] | None:
        """Return why and at which step this attempt ends; None if it continues.

        Every rank calls it after a checkpoint. Rank 0's ``saved_step`` is the newest checkpoint's
        step. An attempt does not stop to resize if that would lose steps it could not save.
        """
        votes = gather_objects((self.reason, saved_step))
        reason = functools.reduce(more_pressing, (reason for reason, _ in votes))
        _, saved_step = votes[0]
        if reason == RESIZED and saved_step < step:
            logger.warning("not resizing: there is no checkpoint of step %d to resume from", step)
            self.is_stopping, self._not_before = False, time.monotonic() + RESIZE_AGAIN_S
            return None
        return {"reason": reason, "step": step, "saved_step": saved_step}

    def _is_decided(self, votes: Sequence[bool]) -> bool:
        wants, checks = votes
        if checks:
            self._checked_at = time.monotonic()
            if self._context.is_preempted():
                self._is_preempted = True
        return wants or self._is_preempted
