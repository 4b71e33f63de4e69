import os
import socket

import pytest
import torch

from rm_ray.cluster import process_group
from rm_ray.cluster.process_group import (
    ProcessGroupConfig,
    find_interface,
    prepare_gpu,
    set_defaults,
)
from rm_ray.errors import InputError
from rm_ray.local_home import local_home

ADDRESSES = {
    "lo": ["127.0.0.1", "::1"],
    "docker0": ["172.17.0.1"],
    "eth0": ["192.168.1.4", "fe80::1%eth0"],
    "ib0": ["10.1.0.4", "2001:db8::4"],
}


def test_the_interface_is_the_one_with_the_address():
    assert find_interface(ADDRESSES, "10.1.0.4") == "ib0"
    assert find_interface(ADDRESSES, "2001:db8::4") == "ib0"
    assert find_interface(ADDRESSES, "127.0.0.1") == "lo"


def test_an_unknown_address_has_no_interface():
    assert find_interface(ADDRESSES, "10.1.0.5") is None
    assert find_interface({}, "10.1.0.4") is None


def test_defaults_are_set_for_nccl_triton_and_the_allocator():
    environment: dict[str, str] = {}
    set_defaults(environment)

    assert environment == {
        "NCCL_DEBUG": "WARN",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TRITON_CACHE_DIR": str(local_home() / "triton"),
    }


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_existing_environment_variables_are_kept(name: str):
    given = {"NCCL_DEBUG": "INFO", name: "backend:cudaMallocAsync", "TRITON_CACHE_DIR": "/cache"}
    environment = dict(given)
    set_defaults(environment)

    assert environment == given


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_its_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(process_group, "find_cuda", lambda: None)
    with pytest.raises(InputError, match=f"{socket.gethostname()} .* is built without CUDA"):
        prepare_gpu()


def test_the_collective_timeout_is_set_on_the_process_group():
    assert ProcessGroupConfig(timeout_s=5_400).to_dict()["timeout_s"] == 5_400
