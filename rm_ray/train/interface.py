"""Where ranks on CPUs meet: at the address by which Ray knows their machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class RayInterface(TorchConfig):  # type: ignore[misc]
    """Torch's process group, over the network interface that Ray uses.

    Left to itself, gloo takes what a machine's own name stands for, which on Debian and Ubuntu is
    127.0.1.1, where no other machine reaches it. NCCL chooses for itself.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return what Ray Train starts the ranks with."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Have gloo listen where Ray does, unless the environment says where."""
    addresses = {name: [one.address for one in has] for name, has in psutil.net_if_addrs().items()}
    interface = find_interface(addresses, ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, interface)


def find_interface(addresses: Mapping[str, Iterable[str]], address: str) -> str | None:
    """Return the interface with an address; None where none has it, as behind a translation."""
    return next((name for name, has in addresses.items() if address in has), None)
