"""The end of a run with an evaluator: wait for what is pending, then settle the best checkpoint."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

from rm_ray.errors import LostError
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.history import History
from rm_ray.runs.late_evaluations import describe_steps, is_due
from rm_ray.runs.manifest import Checkpoint, find_intact
from rm_ray.tracking.channel import ChannelUpdate
from rm_ray.worker.beside.pending import find_pending, late_evaluations
from rm_ray.worker.checkpoints import stored_checkpoints
from rm_ray.worker.job import TrainJob

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0

MOST_DEATHS = 10
"""Consecutive looks that find the evaluator dead, and not restarted by Ray."""


def await_evaluations(job: TrainJob, evaluator: Any, channel: Any) -> None:
    """Wait until no checkpoint waits for its evaluation, and show for how many.

    Raises:
        LostError: the evaluator died and does not come back, or cannot evaluate anything.
        OSError: the storage fails.
    """
    late, known = late_evaluations(job), dict[str, Checkpoint]()
    shown, deaths = "", 0
    while pending := find_pending(job.run_folder, late, known):
        steps = describe_steps([found.manifest.step for found in pending])
        line = f"training is finished; waiting for the evaluation of {steps}"
        if line != shown:
            channel.post.remote(ChannelUpdate(lines=[] if shown else [line], status=line))
        shown = line
        problem = _ask(evaluator)
        deaths = deaths + 1 if problem is None else 0
        if deaths == MOST_DEATHS:
            raise LostError("the evaluator died while checkpoints waited for it")
        if problem:
            raise LostError(f"{steps} cannot be evaluated: {problem}", is_outage=True)
        time.sleep(LOOK_EVERY_S)
    if shown:
        status = "training is finished, and no checkpoint waits for its evaluation"
        channel.post.remote(ChannelUpdate(status=status))


def _ask(evaluator: Any) -> str | None:
    """Return what keeps an evaluator from its work for too long, mostly nothing; None if it died.

    One that waits for resources or is busy has not died.
    """
    try:
        problem: str = ray.get(evaluator.answer.remote(), timeout=LOOK_EVERY_S)
    except ray.exceptions.ActorUnavailableError:
        return ""  # Ray is restarting it
    except ray.exceptions.RayActorError:
        return None
    except ray.exceptions.GetTimeoutError:
        return ""
    return problem


def settle_evaluations(job: TrainJob, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return rank 0's outcome with all late evaluations, the last metrics and the best checkpoint.

    Deletes the checkpoints that were kept for their evaluation only.
    """
    late, last_step = late_evaluations(job), job.steps.total
    history = late.merge_into(History.from_json_lines(outcome["history"].splitlines()))
    stored = stored_checkpoints(
        job.run_folder, job.config, attempt=job.attempt, last_step=last_step
    )
    stored.intact = [*find_intact(job.run_folder, list_checkpoints(job.run_folder))]
    stored.prune()
    evaluated = {record.step for record in history.records if record.kind == "eval"}
    due = (s for s in range(1, last_step + 1) if is_due(job.config, s, last_step=last_step))
    missing = [step for step in due if step not in evaluated]
    if missing:
        logger.warning("there is no evaluation of %s", describe_steps(missing))
    return {
        **outcome,
        "history": history.to_json_lines(),
        "metrics": {**history.last("train"), **history.last("eval")},
        "best_checkpoint": stored.best,
        "steps_not_evaluated": missing,
    }
