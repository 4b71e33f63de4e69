"""One attempt at a run, from configuration to result."""

from __future__ import annotations

import logging
from typing import Any

from rm_ray.cluster.ray_cluster import ray_cluster
from rm_ray.config.train_config import TrainConfig
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.local_home import local_home
from rm_ray.runs.record import open_run
from rm_ray.storage import Storage
from rm_ray.tracking.early_check import EarlyMlflowCheck
from rm_ray.tracking.target import MlflowTarget

logger = logging.getLogger(__name__)

_HEAVY = ("rm_ray.driver.fit", "rm_ray.preflight.resolve")
"""Modules that import torch and transformers, which takes about as long as starting Ray."""


def dry_run(config: TrainConfig) -> dict[str, Any]:
    """Resolve the run without training; return a description of it."""
    storage = Storage.open(config.run.storage_path)
    with ray_cluster(config.cluster, imports=_HEAVY) as cluster:
        from rm_ray.preflight.resolve import resolve_run
        from rm_ray.preflight.resolved_run import describe_run

        return describe_run(resolve_run(config, storage, cluster))


def drive(config: TrainConfig, attempt_handle: AttemptHandle | None = None) -> dict[str, Any]:
    """Make one attempt at a run, resuming if it can; return its ``result.json``.

    Raises:
        InputError: the input is wrong; nothing has been trained.
        TrainingError: training started and cannot continue.
        StoppedError: the attempt was asked to stop, and took a checkpoint.
        LostError: the attempt was lost; another one may succeed.
    """
    attempt_handle = attempt_handle or AttemptHandle()
    again = bool(attempt_handle.earlier)
    storage = Storage.open(config.run.storage_path)
    _, result = open_run(storage, config, again=again)
    if result is not None:
        return result
    if not again:
        local_home()  # fail early if it cannot be created
        logger.info("starting Ray and loading libraries")  # up to two minutes from a cold disk
    with ray_cluster(config.cluster, imports=_HEAVY, again=again, will_train=True) as cluster:
        from rm_ray.driver.fit import fit
        from rm_ray.preflight.resolve import resolve_run
        from rm_ray.preflight.summary import log_summary

        startup = attempt_handle.startup
        startup.end("imports and Ray")
        mlflow = None if again else EarlyMlflowCheck(MlflowTarget.of(config.mlflow, storage))
        resolved = resolve_run(config, storage, cluster, waits=again, on_phase=startup.end)
        if mlflow is not None:
            log_summary(resolved)
            mlflow.refuse()
        trained = fit(resolved, cluster, attempt_handle)
    from rm_ray.driver.finish import finish

    return finish(resolved, trained, attempt_handle)
