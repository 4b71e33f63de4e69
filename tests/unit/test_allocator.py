import os
import platform
import subprocess
import sys

import pytest

from rm_ray.allocator import KEEPS_MEMORY, keep_freed_memory

FAULTS = """
import resource, threading, torch
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return torch.ones(2**24).mul_(2).sum()  # 64 MiB
def run():
    for _ in range(10):  # aligned tensors need a few before they fit
        step()
    before = pages()
    for _ in range(10):
        step()
    print(pages() - before)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


def faults(environment: dict[str, str]) -> int:
    others = {name: value for name, value in os.environ.items() if "MALLOC_" not in name}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=others | environment
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_a_tensor_gets_the_pages_that_the_one_before_had():
    """In a thread too, as in a worker. By default each of ten tensors gets 16,384 new ones."""
    assert faults({}) > 100_000
    assert faults(KEEPS_MEMORY) < 20_000


def test_what_the_user_has_set_stays(monkeypatch):
    for name in KEEPS_MEMORY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    keep_freed_memory()
    assert os.environ["MALLOC_ARENA_MAX"] == "4"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == str(2**33)
