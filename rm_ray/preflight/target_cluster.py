"""The cluster that will train: the current one, or another that the settings describe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rm_ray.cluster.ray_cluster import fit_to_cluster, ray_cluster
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.errors import InputError
from rm_ray.preflight.checks.machines import check_cluster
from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.checks.wording import count
from rm_ray.preflight.machines import Machine


@dataclass(frozen=True, kw_only=True)
class TargetCluster:
    """The workers that will train, and whether the current cluster has room for them."""

    cluster: ClusterConfig
    """The settings, with the number of workers and the use of GPUs decided."""

    verdict: Verdict

    is_elsewhere: bool
    """Whether another cluster will train, not the current one."""


@contextmanager
def open_any_cluster(config: ClusterConfig) -> Iterator[None]:
    """Connect to the running cluster, or start a local one.

    If the workers do not fit on this machine's CPUs, a default local cluster is started instead.
    """
    cores = os.cpu_count() or 1
    least, _ = config.worker_bounds or (1, 1)
    fits = least * config.cpus_per_worker <= cores
    with ray_cluster(config if fits else ClusterConfig()):
        yield


def find_target(
    config: ClusterConfig,
    machines: Sequence[Machine],
    *,
    may_be_elsewhere: bool,
    evaluator_cpus: int = 0,
) -> TargetCluster:
    """Fit the workers to the current cluster, or take them from the settings if another may train.

    ``evaluator_cpus`` are left to an evaluator.

    Raises:
        InputError: another cluster will train, but its number of workers is not set.
    """
    try:
        fitted, refusal = fit_to_cluster(config, evaluator_cpus=evaluator_cpus), ""
    except InputError as error:
        most = (config.worker_bounds or (1, 1))[1]
        fitted, refusal = replace(config, num_workers=most), str(error)
    return choose_target(
        config, machines, fitted, refusal=refusal, may_be_elsewhere=may_be_elsewhere
    )


def choose_target(
    config: ClusterConfig,
    machines: Sequence[Machine],
    fitted: ClusterConfig,
    *,
    refusal: str,
    may_be_elsewhere: bool,
) -> TargetCluster:
    """Choose the current cluster as the target, or another one that the settings describe.

    ``fitted`` holds the settings fitted to the current cluster; ``refusal`` is why it lacks room
    for the workers, empty if it does not. The target is another cluster if allowed and if this one
    lacks room or has no GPUs.

    Raises:
        InputError: another cluster will train, but its number of workers is not set.
    """
    has_gpus = any(machine.num_gpus for machine in machines)
    is_elsewhere = may_be_elsewhere and (bool(refusal) or not has_gpus)
    cluster = fitted
    if is_elsewhere:
        if config.worker_bounds is None:
            raise InputError(
                "with --gpu_memory_gb, another cluster may train. Set its number of workers with "
                "--cluster.num_workers."
            )
        use_gpu = config.use_gpu is not False
        cluster = replace(config, num_workers=config.worker_bounds[1], use_gpu=use_gpu)
    each = count(cluster.cpus_per_worker, "CPU") + (" and a GPU" if cluster.use_gpu else "")
    workers = f"{count(int(cluster.num_workers or 1), 'worker')} of {each}"
    verdict = check_cluster(machines, workers, refusal, is_elsewhere=is_elsewhere)
    return TargetCluster(cluster=cluster, verdict=verdict, is_elsewhere=is_elsewhere)
