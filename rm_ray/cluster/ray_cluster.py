"""The Ray cluster of a run: an existing one, or a local one that is stopped afterwards."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import ray
from ray.job_config import JobConfig

from rm_ray.allocator import keep_freed_memory
from rm_ray.cluster.ray_folder import choose_ray_folder
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.errors import InputError, LostError
from rm_ray.importing import ROOT, share_package

logger = logging.getLogger(__name__)

RETRY_EVERY_S = 2.0

WARMING_S = 10.0
"""Seconds that the end of a command waits for Ray Data's actors to have started."""


@contextmanager
def ray_cluster(
    config: ClusterConfig,
    *,
    imports: Sequence[str] = (),
    again: bool = False,
    will_train: bool = False,
) -> Iterator[ClusterConfig]:
    """Use the initialized Ray, the one at RAY_ADDRESS (set inside a Ray job), or a local one.

    The modules named in ``imports`` are imported while Ray starts. If a run ``will_train``, a
    local Ray starts meanwhile what the run needs of Ray Data. Yields the config; for a local
    cluster, with the number of workers filled in.

    Raises:
        InputError: no Ray runs at the address.
        LostError: no Ray answers at the address, but one did before (``again``).
    """
    if ray.is_initialized():
        yield config
        return
    is_local = not os.environ.get("RAY_ADDRESS")
    with ThreadPoolExecutor(thread_name_prefix="imports") as pool:
        imported = pool.submit(lambda: [importlib.import_module(name) for name in imports])
        if will_train:  # Ray Train cannot use processes started ahead, which would take cores
            os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        config = _start(config, again=again)
        try:
            with _warming() if will_train and is_local else nullcontext():
                imported.result()
                _quiet_ray_data()
                yield config
        finally:
            ray.shutdown()


def _start(config: ClusterConfig, *, again: bool) -> ClusterConfig:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # keep relative paths valid
    on_term = signal.getsignal(signal.SIGTERM)  # ray.init replaces the handler
    try:
        return _init(config, again=again)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)


class _PackageJobConfig(JobConfig):  # type: ignore[misc]
    """A job whose processes import modules from this package's root.

    Unless a job has its own working directory, Ray puts the current directory first on the path.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def _init(config: ClusterConfig, *, again: bool) -> ClusterConfig:
    address = os.environ.get("RAY_ADDRESS")
    job = _PackageJobConfig(_py_driver_sys_path=[ROOT])
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "job_config": job}
    if address:
        # Show Ray Train runs on the cluster's dashboard, at the cost of one actor on the head.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            if again:
                raise LostError(
                    f"Ray at '{address}' does not answer ({reason})", is_outage=True
                ) from None
            raise InputError(
                f"there is no Ray cluster to use at RAY_ADDRESS '{address}' ({reason}); start one "
                "with 'ray start --head', or unset RAY_ADDRESS to train on this machine only"
            ) from None
        return config
    cores = os.cpu_count() or 1
    least, most = config.worker_bounds or (1, 1)
    workers = max(least, min(most, cores // config.cpus_per_worker))
    if workers * config.cpus_per_worker > cores:
        raise InputError(
            f"cluster.num_workers x cluster.cpus_per_worker is {workers} x "
            f"{config.cpus_per_worker}, but this machine has {cores} CPU cores; request fewer"
        )
    share_package()
    # Oversubscribe, so that Ray Data's short tasks share the cores instead of waiting for workers.
    start_local(num_cpus=workers * config.cpus_per_worker + cores, **quiet)
    return replace(config, num_workers=workers) if least < most else config


def start_local(*, num_cpus: int, **options: Any) -> None:
    """Start a local Ray on this machine only.

    Raises:
        LostError: Ray did not start in time; another attempt may succeed.
    """
    keep_freed_memory()
    try:
        ray.init(address="local", num_cpus=num_cpus, _temp_dir=choose_ray_folder(), **options)
    except Exception as error:  # Ray has no specific class for a startup timeout
        if "timed out during startup" not in str(error):
            raise
        raise LostError("Ray did not start in time on this machine; is it busy?") from error


@contextmanager
def _warming() -> Iterator[None]:
    """Warm Ray Data meanwhile, and end no sooner: after Ray's end it would start another Ray."""
    thread = threading.Thread(target=warm_ray_data, name="warm-ray-data", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(WARMING_S)


def warm_ray_data() -> None:
    """Have Ray Data start its actors and a process for tasks, while the libraries load.

    Ray Train's controller waits for one of these actors before it starts workers.
    """
    try:
        _quiet_ray_data()
        import ray.data

        ray.data.range(1, override_num_blocks=1).materialize()
    except Exception:  # whatever Ray raises: whoever reads data next reports it
        logger.debug("Ray Data did not start early", exc_info=True)


def _quiet_ray_data() -> None:
    import ray.data  # imported here because it takes a second

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train", "ray.util.placement_group"):
        logging.getLogger(name).setLevel(logging.ERROR)


def fit_to_cluster(
    config: ClusterConfig, *, waits: bool = False, evaluator_cpus: int = 0
) -> ClusterConfig:
    """Set the number of workers and the use of GPUs from the cluster's resources.

    A range takes what other jobs leave free. With ``waits``, wait while the cluster has too few
    resources, for example after losing a machine. ``evaluator_cpus`` are left to an evaluator.

    Raises:
        InputError: the cluster has too few GPUs or CPUs.
    """
    has_warned = False
    while True:
        try:
            free = _machines(free=True)
            return fit_to_machines(config, _machines(), free=free, evaluator_cpus=evaluator_cpus)
        except InputError as error:
            if not waits:
                raise
            if not has_warned:
                logger.warning("%s. Waiting for a machine", error)
                has_warned = True
            time.sleep(RETRY_EVERY_S)


def count_fitting(config: ClusterConfig, *, held: int, evaluator_cpus: int = 0) -> int:
    """Return how many workers would fit on the cluster now; 0 if it has too few resources.

    ``held`` is the number of workers already running; only free resources can add to them, and
    ``evaluator_cpus`` are an evaluator's.

    Raises:
        ConnectionError: the cluster does not answer.
    """
    try:
        fitted = fit_to_machines(config, _machines(), evaluator_cpus=evaluator_cpus)
        free = _count_places(fitted, _machines(free=True), use_gpu=bool(fitted.use_gpu))
        return min(int(fitted.num_workers or 0), held + free)
    except InputError:
        return 0
    except (ray.exceptions.RayError, RuntimeError) as error:
        raise ConnectionError(str(error)) from error


def count_fitting_runs(
    config: ClusterConfig,
    machines: Sequence[Mapping[str, float]] | None = None,
    *,
    evaluator_cpus: int = 0,
) -> int:
    """Return how many runs with these settings fit at once on machines that are free.

    These are the cluster's, unless given. A range counts as the most workers that it could take.
    Each run has an evaluator with ``evaluator_cpus``.

    Raises:
        InputError: not even one fits.
    """
    machines = _machines() if machines is None else machines
    fitted = fit_to_machines(config, machines, evaluator_cpus=evaluator_cpus)
    places = _count_places(fitted, machines, use_gpu=bool(fitted.use_gpu))
    spare = sum(int(machine.get("CPU", 0)) for machine in machines) - 1  # one for Ray Data
    workers = int(fitted.num_workers or 0)
    each = workers * fitted.cpus_per_worker + evaluator_cpus
    return max(min(places // workers, spare // each), 1)


def _machines(*, free: bool = False) -> list[dict[str, float]]:
    """Return the total or free resources of each machine that is alive and not draining."""
    # Ray's public API does not list draining nodes.
    leaving = ray._private.state.state.get_draining_nodes()
    there = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    found = ray._private.state.available_resources_per_node() if free else there
    return [found.get(node, {}) for node in there if node not in leaving]


def _count_places(
    config: ClusterConfig, machines: Sequence[Mapping[str, float]], *, use_gpu: bool
) -> int:
    """Return how many workers fit, each on a single machine."""
    places = [int(machine.get("CPU", 0)) // config.cpus_per_worker for machine in machines]
    if use_gpu:
        gpus = [int(machine.get("GPU", 0)) for machine in machines]
        places = [min(place, count) for place, count in zip(places, gpus, strict=True)]
    return sum(places)


def fit_to_machines(
    config: ClusterConfig,
    machines: Sequence[Mapping[str, float]],
    *,
    free: Sequence[Mapping[str, float]] | None = None,
    evaluator_cpus: int = 0,
) -> ClusterConfig:
    """Set the number of workers and the use of GPUs from the machines' resources.

    A range takes only ``free`` resources, if given. ``evaluator_cpus``, on one machine, are left to
    an evaluator beside the workers.

    Raises:
        InputError: the machines have too few GPUs or CPUs.
    """
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    use_gpu = sum(gpus) > 0 if config.use_gpu is None else config.use_gpu
    least, most = config.worker_bounds or (max(sum(gpus), 1) if use_gpu else 1,) * 2
    has = f"the cluster has {sum(gpus)} GPUs and {sum(cpus)} CPUs"
    if use_gpu and least > sum(gpus):
        raise InputError(
            f"cluster.num_workers is {least} with one GPU each, but {has}; request fewer "
            "workers, or train on CPUs with --cluster.use_gpu False"
        )
    spare = sum(cpus) - 1 - evaluator_cpus  # one for Ray Data
    places = _count_places(config, machines, use_gpu=use_gpu)
    fitting = min(places, spare // config.cpus_per_worker)
    if least > fitting:
        beside = f", and the evaluator {evaluator_cpus}" if evaluator_cpus else ""
        others = ", or evaluate with --evaluation.where within" if evaluator_cpus else ""
        raise InputError(
            f"cluster.num_workers x cluster.cpus_per_worker is {least} x "
            f"{config.cpus_per_worker}, and Ray Data needs 1 more CPU{beside}: "
            f"{least * config.cpus_per_worker + 1 + evaluator_cpus} CPUs, each worker's on one "
            f"machine, but {has}; request fewer{others}"
        )
    if evaluator_cpus > max(cpus, default=0):
        raise InputError(
            f"evaluation.cpus is {evaluator_cpus}, all on one machine, but the largest has "
            f"{max(cpus, default=0)} CPUs; request fewer"
        )
    if free is not None:
        fitting = max(least, min(fitting, _count_places(config, free, use_gpu=use_gpu)))
    return replace(config, num_workers=min(most, fitting), use_gpu=use_gpu)
