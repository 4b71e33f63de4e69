"""One attempt at a run, from its configuration to its result."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_ray.cluster.session import ray_cluster
from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.going import Going
from rm_ray.runs.record import look_up
from rm_ray.storage import Storage, local_home
from rm_ray.tracking.shipping import EarlyQuestion
from rm_ray.tracking.target import MlflowTarget

if TYPE_CHECKING:
    from rm_ray.preflight.prepare import Prepared

logger = logging.getLogger(__name__)

_HEAVY = ("rm_ray.driver.trainer",)
"""Imports torch, transformers and the rest, which takes about as long as Ray takes to start."""


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Prepare everything, train nothing; return what a run would do."""
    with ray_cluster(config.cluster, imports=_HEAVY) as cluster:
        from rm_ray.preflight.prepare import describe_run

        return describe_run(_prepare(config, replace(config, cluster=cluster)))


def _prepare(asked: TrainConfig, config: TrainConfig, **options: Any) -> Prepared:
    """Prepare, and choose what is 'auto' for the fewest workers that were asked for."""
    from rm_ray.preflight.choosing import choose, find_room
    from rm_ray.preflight.machines import list_machines
    from rm_ray.preflight.planning import count_workers
    from rm_ray.preflight.prepare import prepare

    prepared = prepare(config, **options)
    room = find_room(prepared.config, list_machines())
    least = (asked.cluster.worker_bounds or (count_workers(prepared),))[0]
    return choose(prepared, room, num_workers=least)


def train(config: TrainConfig, going: Going | None = None) -> dict[str, Any]:
    """Make one attempt at a run, from where it stands; return its ``result.json``.

    Raises:
        InputError: something given cannot be trained on; nothing has been trained.
        TrainingError: training began and cannot go on.
        StoppedError: it was asked to stop, and has taken a checkpoint.
        LostError: it was lost, and another attempt may succeed.
    """
    going = going or Going()
    again = bool(going.earlier)
    _, result = look_up(config, again=again)
    if result is not None:
        return result
    if not again:
        local_home()  # where it cannot be made, no worker need start
        logger.info("starting Ray and loading libraries")  # up to two minutes from a cold disk
    with ray_cluster(config.cluster, imports=_HEAVY, again=again) as cluster:
        from rm_ray.driver.trainer import fit
        from rm_ray.preflight.brief import say_in_short

        going.startup.end("imports and Ray")
        target = MlflowTarget.of(config.mlflow, Storage.open(config.run.storage_path))
        asked = None if again else EarlyQuestion(target)
        prepared = _prepare(
            config,
            replace(config, cluster=cluster),
            waits=again,
            on_phase=going.startup.end,
        )
        if asked is not None:
            say_in_short(prepared)
            asked.refuse()
        fitted = fit(prepared, cluster, going)
    from rm_ray.driver.finish import finish

    return finish(prepared, fitted, going)
