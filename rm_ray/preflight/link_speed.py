"""Measurement of the network between the workers that will train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import ray
import ray.train
from ray.train.torch import TorchTrainer

from rm_ray.cluster.connectivity import (
    LinkSpeed,
    connect,
    measure_links,
    meet,
    ranks_across_machines,
    ranks_by_machine,
)
from rm_ray.cluster.failures import explain
from rm_ray.cluster.process_group import ProcessGroupConfig, describe_host
from rm_ray.cluster.timeouts import COMPANY_S, EXCHANGE_S
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.errors import InputError, LostError, TrainingError
from rm_ray.estimate.network import Network
from rm_ray.storage import Storage


def measure_network(cluster: ClusterConfig, storage: Storage) -> tuple[Network, str]:
    """Let workers exchange messages for a few seconds; return the network and a summary line.

    All links are busy at once, as in training: first within every machine, then between every
    worker and its counterparts on the other machines.

    Raises:
        InputError: there is only one worker, or the workers cannot reach each other.
    """
    if cluster.num_workers == 1:
        raise InputError(
            "--measure_network needs at least two workers, but cluster.num_workers is 1"
        )
    name = f".preflight-{uuid4().hex}"
    trainer = TorchTrainer(
        _measure,
        torch_config=ProcessGroupConfig(timeout_s=int(EXCHANGE_S)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=int(cluster.num_workers or 1),
            use_gpu=bool(cluster.use_gpu),
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": 1} if cluster.use_gpu else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=name, storage_path=storage.path, storage_filesystem=storage.filesystem
        ),
    )
    try:
        found = dict(trainer.fit().return_value or {})
    except ray.train.TrainingFailedError as error:
        cause = explain(error, can_read=lambda: False)
        if not isinstance(cause, InputError | LostError | TrainingError):
            raise
        raise InputError(str(cause).splitlines()[0]) from None
    finally:
        storage.delete(name)
    return summarise_links(found["hosts"], found["within"], found["across"], found["all"])


def _measure() -> dict[str, Any]:
    """Measure the links; runs on every worker, and all return the same."""
    device = ray.train.torch.get_device()
    connect(device, describe_host())
    hosts = meet(describe_host(), limit_s=COMPANY_S)
    return {
        "hosts": hosts,
        "within": measure_links(ranks_by_machine(hosts), device),
        "across": measure_links(ranks_across_machines(hosts), device),
        "all": measure_links([range(len(hosts))], device),
    }


def summarise_links(
    hosts: Sequence[str], within: LinkSpeed | None, across: LinkSpeed | None, everyone: LinkSpeed
) -> tuple[Network, str]:
    """Return the network for the time model, and a summary line.

    ``within`` is None if every machine has one worker, ``across`` is None if there is one machine;
    the other links then stand in for the missing ones. ``gpus_per_node`` is the number of workers
    on the machine with the most.
    """
    machines = ranks_by_machine(hosts)
    near, far = _slower(within), _slower(across)
    assert near is not None or far is not None, "two workers have a link"
    network = Network(
        within_node=near or far or 0.0,
        between_nodes=far or near or 0.0,
        gpus_per_node=max(map(len, machines)),
        latency=everyone.latency_s,
    )
    ranks, count = len(hosts), len(machines)
    links = [f"{speed / 1e9:.3g} GB/s within a machine" for speed in (near,) if speed]
    links += [f"{speed / 1e9:.3g} GB/s per worker between machines" for speed in (far,) if speed]
    return network, (
        f"{ranks} workers on {count} machine{'s' * (count != 1)}: {', '.join(links)}; "
        f"{everyone.latency_s * 1e6:,.0f} microseconds for the smallest all-reduce"
    )


def _slower(links: LinkSpeed | None) -> float | None:
    """Return the bandwidth of the slower kind of collective."""
    return None if links is None else min(links.all_reduce, links.all_gather)
