"""A config -> a resolved run: the only place where training settings are resolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rm_ray.cluster.ray_cluster import fit_to_cluster
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.preflight.auto_settings import choose, find_hardware, keep_choices
from rm_ray.preflight.estimate_inputs import count_workers
from rm_ray.preflight.machines import list_machines
from rm_ray.preflight.planning import plan_run
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.storage import Storage


def resolve_run(
    config: TrainConfig,
    storage: Storage,
    cluster: ClusterConfig,
    *,
    waits: bool = False,
    on_phase: Callable[[str], None] = lambda _: None,
) -> ResolvedRun:
    """Check the config, tokenise new pairs and resolve every setting.

    ``storage`` is at ``run.storage_path``; ``cluster`` is the section that Ray was started with.
    With ``waits``, wait until the cluster has enough machines. 'auto' is resolved for the fewest
    requested workers. ``on_phase`` receives the name of each finished phase.

    Raises:
        InputError: the config or its data is not suitable for training.
    """
    kept = keep_choices(replace(config, cluster=cluster), storage.folder(config.run.name))
    fitted = replace(
        kept,
        cluster=fit_to_cluster(kept.cluster, waits=waits, evaluator_cpus=kept.evaluator_cpus),
    )
    planned = plan_run(fitted, storage, on_phase=on_phase)
    hardware = find_hardware(planned.config, list_machines())
    least = (config.cluster.worker_bounds or (count_workers(planned),))[0]
    return choose(planned, hardware, num_workers=least)
