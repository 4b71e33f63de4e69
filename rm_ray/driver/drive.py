"""One attempt at a run, from its configuration to its result."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_ray.cluster.ray_cluster import ray_cluster
from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.runs.record import open_run
from rm_ray.storage import Storage, local_home
from rm_ray.tracking.sender import EarlyMlflowCheck
from rm_ray.tracking.target import MlflowTarget

if TYPE_CHECKING:
    from rm_ray.preflight.resolve import ResolvedRun

logger = logging.getLogger(__name__)

_HEAVY = ("rm_ray.driver.fit",)
"""Imports torch, transformers and the rest, which takes about as long as Ray takes to start."""


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Prepare everything, train nothing; return what a run would do."""
    with ray_cluster(config.cluster, imports=_HEAVY) as cluster:
        from rm_ray.preflight.resolve import describe_run

        return describe_run(_prepare(config, replace(config, cluster=cluster)))


def _prepare(asked: TrainConfig, config: TrainConfig, **options: Any) -> ResolvedRun:
    """Prepare, and choose what is 'auto' for the fewest workers that were asked for."""
    from rm_ray.preflight.auto_settings import choose, find_room
    from rm_ray.preflight.machines import list_machines
    from rm_ray.preflight.resolve import resolve_run
    from rm_ray.preflight.run_estimate import count_workers

    resolved = resolve_run(config, **options)
    room = find_room(resolved.config, list_machines())
    least = (asked.cluster.worker_bounds or (count_workers(resolved),))[0]
    return choose(resolved, room, num_workers=least)


def drive(config: TrainConfig, attempt_handle: AttemptHandle | None = None) -> dict[str, Any]:
    """Make one attempt at a run, from where it stands; return its ``result.json``.

    Raises:
        InputError: something given cannot be trained on; nothing has been trained.
        TrainingError: training began and cannot go on.
        StoppedError: it was asked to stop, and has taken a checkpoint.
        LostError: it was lost, and another attempt may succeed.
    """
    attempt_handle = attempt_handle or AttemptHandle()
    again = bool(attempt_handle.earlier)
    _, result = open_run(config, again=again)
    if result is not None:
        return result
    if not again:
        local_home()  # where it cannot be made, no worker need start
        logger.info("starting Ray and loading libraries")  # up to two minutes from a cold disk
    with ray_cluster(config.cluster, imports=_HEAVY, again=again) as cluster:
        from rm_ray.driver.fit import fit
        from rm_ray.preflight.summary import log_summary

        attempt_handle.startup.end("imports and Ray")
        target = MlflowTarget.of(config.mlflow, Storage.open(config.run.storage_path))
        asked = None if again else EarlyMlflowCheck(target)
        resolved = _prepare(
            config,
            replace(config, cluster=cluster),
            waits=again,
            on_phase=attempt_handle.startup.end,
        )
        if asked is not None:
            log_summary(resolved)
            asked.refuse()
        fitted = fit(resolved, cluster, attempt_handle)
    from rm_ray.driver.finish import finish

    return finish(resolved, fitted, attempt_handle)
