"""Small runs evaluated by their workers, and beside them in this process."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from plain_training import NUM_HELD_OUT, PlainChannel, PlainRank, small_config
from resolved_runs import builtin_cache

from rm_ray.batches.stream import PlannedGroups
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.worker.beside.evaluator import Evaluator
from rm_ray.worker.beside.pending import PendingEvaluations


def trained_run(folder: Path, where: str, **sections: Any) -> PlainRank:
    """Train 4 steps that are evaluated every 2, and keep every checkpoint."""
    evaluation = EvaluationConfig(every_steps=2, sample_rows=3, where=where)  # type: ignore[arg-type]
    checkpoint = CheckpointConfig(every_steps=2, keep=9, keep_best_by="eval/rm/loss")
    given = {
        "evaluation": evaluation,
        "checkpoint": checkpoint,
        "optimizer": OptimizerConfig(learning_rate=1e-3, epochs=1),
    }
    config = small_config(folder, **given | sections)
    rank = PlainRank.make(folder, config)
    rank.train()
    return rank


def held_out_streams(rank: PlainRank, folder: Path) -> dict[str, PlannedGroups]:
    """Return the rank's held-out pairs as an evaluator reads them: from their token cache."""
    cache = builtin_cache(folder, "test", num_groups=NUM_HELD_OUT)
    (held_out,) = rank.job.held_out
    return {"eval": PlannedGroups(cache=cache.parts, settings=held_out.steps.settings)}


def pending_of(
    rank: PlainRank,
    streams: dict[str, PlannedGroups],
    *,
    attempt: int = 1,
    on_progress: Callable[[], None] = lambda: None,
) -> tuple[PendingEvaluations, PlainChannel]:
    """Return a run's pending evaluations, and the channel that they are sent to."""
    channel = PlainChannel()
    job = replace(rank.job, attempt=attempt)
    pending = PendingEvaluations(
        job=job,
        streams=streams,
        channel=channel,  # type: ignore[arg-type]
        build=partial(Evaluator.build, on_progress=on_progress),
    )
    return pending, channel
