import os
import subprocess
import sys

import pytest

from rm_ray import allocator
from rm_ray.allocator import FIRST_GLIBC, SETTINGS, find_glibc, keep_freed_memory

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


@pytest.mark.skipif(find_glibc() < FIRST_GLIBC, reason="the settings are of glibc 2.35 or newer")
def test_a_tensor_gets_the_pages_that_the_one_before_had():
    """In a thread too, as in a worker. By default each of ten tensors gets 16,384 small ones."""
    assert faults(dict(SETTINGS)) < faults({}) / 2


@pytest.fixture
def unset(monkeypatch):
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # which monkeypatch then restores
        monkeypatch.delenv(name)


def test_what_the_user_has_set_stays(monkeypatch, unset):
    monkeypatch.setattr(allocator.shutil, "which", lambda _: None)
    monkeypatch.setattr(allocator, "find_glibc", lambda: FIRST_GLIBC)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    keep_freed_memory()
    assert os.environ["MALLOC_ARENA_MAX"] == "4"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == str(2**33)


@pytest.mark.parametrize(
    ("program", "glibc"), [("/bin/nvidia-smi", (2, 36)), (None, (2, 34)), (None, ())]
)
def test_nothing_changes_on_gpus_and_with_other_c_libraries(monkeypatch, unset, program, glibc):
    monkeypatch.setattr(allocator.shutil, "which", lambda _: program)
    monkeypatch.setattr(allocator, "find_glibc", lambda: glibc)
    keep_freed_memory()
    assert not SETTINGS.keys() & os.environ.keys()
