"""The Ray cluster of a run: the one that is given, or a local one that is stopped again."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import ray

from rm_ray.config import ClusterConfig
from rm_ray.errors import InputError

logger = logging.getLogger(__name__)


@contextmanager
def ray_cluster(config: ClusterConfig, *, imports: Sequence[str] = ()) -> Iterator[None]:
    """Use the running Ray, the one at RAY_ADDRESS (as inside a Ray job), or a local one.

    The modules named in ``imports`` are imported while Ray starts.

    Raises:
        InputError: there is no Ray at the address.
    """
    if ray.is_initialized():
        yield
        return
    with ThreadPoolExecutor(thread_name_prefix="imports") as pool:
        imported = pool.submit(lambda: [importlib.import_module(name) for name in imports])
        _start(config)
        imported.result()
    _quiet_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _start(config: ClusterConfig) -> None:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths stay what they are
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"there is no Ray cluster to use at RAY_ADDRESS '{address}' ({reason}); start one "
                "with 'ray start --head', or unset RAY_ADDRESS to train on this machine alone"
            ) from None
        return
    cores = os.cpu_count() or 1
    workers = (config.num_workers or 1) * config.cpus_per_worker
    if workers > cores:
        raise InputError(
            f"cluster.num_workers x cluster.cpus_per_worker is {config.num_workers or 1} x "
            f"{config.cpus_per_worker}, but this machine has {cores} CPU cores; ask for fewer"
        )
    # Ray Data's short tasks share the cores with the workers instead of waiting for them.
    ray.init(address="local", num_cpus=workers + cores, **quiet)


def _quiet_ray_data() -> None:
    import ray.data  # takes a second, which Ray's start has to spare

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.util.placement_group"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fit_to_cluster(config: ClusterConfig) -> ClusterConfig:
    """Fill in the number of workers and the use of GPUs from what the cluster has.

    Raises:
        InputError: it has too few GPUs or CPUs.
    """
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    use_gpu = gpus > 0 if config.use_gpu is None else config.use_gpu
    num_workers = config.num_workers or (gpus if use_gpu and gpus else 1)
    has = f"the cluster has {gpus} GPUs and {cpus} CPUs"
    if use_gpu and num_workers > gpus:
        raise InputError(
            f"cluster.num_workers is {num_workers} with one GPU each, but {has}; ask for fewer "
            "workers, or train on CPUs with --cluster.use_gpu False"
        )
    needed = num_workers * config.cpus_per_worker + 1
    if needed > cpus:
        raise InputError(
            f"cluster.num_workers x cluster.cpus_per_worker is {num_workers} x "
            f"{config.cpus_per_worker}, and Ray Data needs 1 CPU beside them: {needed} CPUs, but "
            f"{has}; ask for fewer"
        )
    return replace(config, num_workers=num_workers, use_gpu=use_gpu)
