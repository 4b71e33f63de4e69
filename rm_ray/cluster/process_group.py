"""How the ranks of a run meet: over which network, with which limits, on which GPUs."""

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
from rm_ray.storage import local_home

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"

ALLOCATOR = "PYTORCH_ALLOC_CONF"
"""What the CUDA allocator does, by the name that torch has for it since 2.9."""

OLD_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""The name before, which torch 2.13 reads first."""


class ProcessGroupConfig(TorchConfig):  # type: ignore[misc]
    """Torch's process group, over the network interface that Ray uses.

    Left to itself, gloo takes what a machine's own name stands for, which on Debian and Ubuntu is
    127.0.1.1, where no other machine reaches it. NCCL chooses for itself.

    The group must form within ``RENDEZVOUS_S``; ``timeout_s`` is how long its collectives, and
    those of groups that are made of it, wait from then on.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return what Ray Train starts the ranks with."""
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
    """Have gloo listen where Ray does, unless the environment says where."""
    interface = _ray_interface()
    if interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, interface)


def _ray_interface() -> str | None:
    addresses = {name: [one.address for one in has] for name, has in psutil.net_if_addrs().items()}
    return find_interface(addresses, ray.util.get_node_ip_address())


def find_interface(addresses: Mapping[str, Iterable[str]], address: str) -> str | None:
    """Return the interface with an address; None where none has it, as behind a translation."""
    return next((name for name, has in addresses.items() if address in has), None)


def describe_host() -> str:
    """Return this machine's name, and where Ray reaches it."""
    return f"{socket.gethostname()} ({ray.util.get_node_ip_address()}, {_ray_interface() or '?'})"


def prepare_gpu() -> None:
    """Set what CUDA, NCCL and Triton read from the environment, before they start.

    Raises:
        InputError: this machine has GPUs by Ray's count, and PyTorch cannot use them.
    """
    set_defaults(os.environ)
    if not torch.cuda.is_available():
        gpus, error = find_gpus()
        raise InputError(explain_no_cuda(socket.gethostname(), find_cuda(), gpus, error))


def set_defaults(environment: MutableMapping[str, str]) -> None:
    """Fill in what the environment leaves open.

    Rows of another length in every micro-batch fragment the memory of a GPU, unless segments grow.
    Triton's cache in a home that 64 workers share is slow, and compiled into by all of them.
    """
    environment.setdefault("NCCL_DEBUG", "WARN")
    if OLD_ALLOCATOR not in environment:
        environment.setdefault(ALLOCATOR, "expandable_segments:True")
    if "TRITON_CACHE_DIR" not in environment:
        environment["TRITON_CACHE_DIR"] = str(local_home() / "triton")


def settle(timeout_s: float) -> None:
    """Give the group the limits that training needs, and say where this rank is."""
    be_patient(timeout_s)
    introduce(describe_host())
