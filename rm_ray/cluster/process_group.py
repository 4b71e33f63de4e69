"""Setup of the process group: network interface, timeouts, and the environment of GPU workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import psutil
import ray
import torch
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from rm_ray.cluster.connectivity import be_patient, introduce
from rm_ray.cluster.gpus import explain_no_cuda, find_cuda, find_gpus
from rm_ray.cluster.timeouts import RENDEZVOUS_S
from rm_ray.errors import InputError
from rm_ray.local_home import local_home

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"

ALLOCATOR = "PYTORCH_ALLOC_CONF"
"""Environment variable for the CUDA allocator since torch 2.9."""

OLD_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""Its previous name, which torch 2.13 still reads first."""


class ProcessGroupConfig(TorchConfig):  # type: ignore[misc]
    """Torch's process group, over the network interface that Ray uses.

    By default, gloo listens on the address of the machine's hostname: on Debian and Ubuntu that is
    127.0.1.1, which other machines cannot reach. NCCL picks its own interface.

    The group must form within ``RENDEZVOUS_S``. From then on, ``timeout_s`` limits its collectives
    and those of all groups created later.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the backend with which Ray Train starts the ranks."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        use_gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        worker_group.execute(choose_interface)
        if use_gpu:
            worker_group.execute(prepare_gpu)
        super().on_start(worker_group, replace(backend_config, timeout_s=int(RENDEZVOUS_S)))
        worker_group.execute(settle, backend_config.timeout_s)


def choose_interface() -> None:
    """Make gloo listen on Ray's interface, unless the environment names one."""
    interface = _ray_interface()
    if interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, interface)


def _ray_interface() -> str | None:
    addresses = {name: [one.address for one in has] for name, has in psutil.net_if_addrs().items()}
    return find_interface(addresses, ray.util.get_node_ip_address())


def find_interface(addresses: Mapping[str, Iterable[str]], address: str) -> str | None:
    """Return the interface with an address; None if no interface has it, for example behind NAT."""
    return next((name for name, has in addresses.items() if address in has), None)


def describe_host() -> str:
    """Return this machine's hostname, Ray address and interface."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()}, {_ray_interface() or '?'})"


def prepare_gpu() -> None:
    """Set the environment variables of CUDA, NCCL and Triton before they initialize.

    Raises:
        InputError: Ray counts GPUs on this machine, but PyTorch cannot use them.
    """
    set_defaults(os.environ)
    if not torch.cuda.is_available():
        gpus, error = find_gpus()
        raise InputError(explain_no_cuda(socket.gethostname(), find_cuda(), gpus, error))


def set_defaults(environment: MutableMapping[str, str]) -> None:
    """Set defaults for variables that the environment does not set.

    Micro-batches of varying lengths fragment GPU memory unless segments can expand. A Triton cache
    in a shared home directory is slow, and all workers would compile into it.
    """
    environment.setdefault("NCCL_DEBUG", "WARN")
    if OLD_ALLOCATOR not in environment:
        environment.setdefault(ALLOCATOR, "expandable_segments:True")
    if "TRITON_CACHE_DIR" not in environment:
        environment["TRITON_CACHE_DIR"] = str(local_home() / "triton")


def settle(timeout_s: float) -> None:
    """Set the group's timeout for training, and publish this rank's machine."""
    be_patient(timeout_s)
    introduce(describe_host())
