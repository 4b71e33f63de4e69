"""Cores of workers, with processes that are called and descend as Ray's do."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from rm_ray.cluster import cores
from rm_ray.cluster.cores import Cores, move, own_cores, take

ROOT = Path(__file__).resolve().parents[3]
HERE = psutil.Process()

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="a worker has a core of its own where there are two",
)


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no run on this machine take the cores of these tests."""
    monkeypatch.setattr(cores, "_NAME", "\0rm_ray-test-" + uuid.uuid4().hex + "-{}")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Two whole cores, of which this process may use no others, as on a machine of two."""
    before = os.sched_getaffinity(0)
    found = sorted(before)[:2]
    os.sched_setaffinity(0, found)
    monkeypatch.setattr(cores, "are_whole", lambda _: True)
    yield found
    os.sched_setaffinity(0, before)


WORKER = """
import json, os, sys, threading
import psutil
sys.path.insert(0, sys.argv[1])
from rm_ray.cluster.cores import Cores

def start():
    thread = threading.Thread(target=sys.stdin.read)
    thread.start()
    return thread.native_id

def train():
    first, second = json.loads(sys.argv[2])
    stale = threading.Thread()
    stale._native_id = os.getppid()  # of a thread that has ended, whose number another one has
    threading._active[-1] = stale
    raylet, driver, above = psutil.Process().parents()[:3]
    find_parent = psutil.Process.parent

    def parent(process):
        if process.pid == driver.pid:
            raise psutil.NoSuchProcess(above.pid)  # one that ends at this moment
        return find_parent(process)

    psutil.Process.parent = parent
    Cores(own=frozenset([second]), rest=frozenset([first]), driver=driver.pid).use()
    del threading._active[-1]
    threads = [0, helper, start(), os.getpid(), raylet.pid, driver.pid, above.pid]
    print(json.dumps([sorted(os.sched_getaffinity(one)) for one in threads]), flush=True)

helper = start()
threading.Thread(target=train).start()
"""

RAYLET = """
import subprocess, sys
if len(sys.argv) > 1:
    subprocess.run(sys.argv[1:], check=True)
sys.stdin.read()
"""


@pytest.fixture
def called_raylet(tmp_path: Path) -> Path:
    """A Python that the system lists by this name."""
    link = tmp_path / "raylet"
    link.symlink_to(sys.executable)
    return link


@pytest.fixture
def raylet(called_raylet: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this name, which waits."""
    command = [called_raylet, "-c", RAYLET]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_a_worker_has_the_last_core_until_the_end_and_no_other_run_has_it(raylet, two):
    first, last = two
    with own_cores(1) as found:
        assert found is not None
        assert (found.own, found.rest, found.driver) == ({last}, {first}, HERE.pid)
        with own_cores(1) as other:
            assert other is None
        os.sched_setaffinity(raylet.pid, found.own)
    assert os.sched_getaffinity(raylet.pid) == {*two}
    with own_cores(1) as again:
        assert again == found


def test_a_worker_has_as_many_as_it_asks_for(raylet, two, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(10, 17)})
    with own_cores(4) as found:
        assert found is not None
        assert (found.own, found.rest) == ({13, 14, 15, 16}, {10, 11, 12})


@pytest.mark.parametrize(("count", "allowed"), [(2, 2), (3, 8)])
def test_a_worker_that_leaves_no_core_or_many_has_none(raylet, two, monkeypatch, count, allowed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(allowed)})
    with own_cores(count) as found:
        assert found is None


def test_a_ray_that_others_use_too_is_left_alone(two):
    with own_cores(1) as found:
        assert found is None


@pytest.mark.parametrize(
    ("quotas", "siblings", "is_whole"),
    [
        (["max 100000"], ["0", "1", "2"], True),
        ([None, "-1"], ["0", "1", "2"], True),
        ([], ["0", "1", "2"], True),
        (["200000 100000"], ["0", "1", "2"], False),
        ([None, "200000"], ["0", "1", "2"], False),
        (["max 100000"], ["0,2", "1", "0,2"], False),
        (["max 100000"], ["0", "1"], False),
    ],
)
def test_cores_are_whole_without_a_quota_and_without_a_sibling(
    tmp_path: Path, monkeypatch, quotas, siblings, is_whole
):
    files = [tmp_path / f"quota-{version}" for version in (2, 1)]
    monkeypatch.setattr(cores, "_QUOTAS", files)
    monkeypatch.setattr(cores, "_SIBLINGS", str(tmp_path / "{}"))
    for file, quota in zip(files, quotas, strict=False):
        if quota is not None:
            file.write_text(f"{quota}\n")
    for core, listed in enumerate(siblings):
        (tmp_path / str(core)).write_text(f"{listed}\n")
    assert cores.are_whole([0, 1, 2]) == is_whole


def test_only_threads_on_the_cores_before_are_moved(raylet, two):
    first, last = two
    for before, expected in (([first], [last]), (two, two)):
        os.sched_setaffinity(raylet.pid, before)
        move([psutil.Process(raylet.pid)], [first], [last])
        assert os.sched_getaffinity(raylet.pid) == {*expected}


def test_python_threads_beside_the_worker_s_are_on_its_cores_and_all_others_on_the_rest(
    called_raylet, two
):
    first, second = two
    driver, raylet = [sys.executable, "-c", RAYLET], [called_raylet, "-c", RAYLET]
    worker = [sys.executable, "-c", WORKER, str(ROOT), json.dumps(two)]
    command = [*driver, *raylet, *worker]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.communicate(b"", timeout=240)
    own, helper, later, *others, above = json.loads(line)
    assert own == helper == later == [second]
    assert others == 3 * [[first]]  # the worker's main thread, raylet and driver
    assert above == two


def test_a_driver_that_is_not_above_is_reported(two, monkeypatch, caplog):
    monkeypatch.setattr(cores, "_keep", lambda *_: None)
    found = Cores(own=frozenset(two[1:]), rest=frozenset(two[:1]), driver=-1)
    found.use()

    def parent(_):
        raise psutil.NoSuchProcess(1)

    monkeypatch.setattr(psutil.Process, "parent", parent)
    found.use()
    assert caplog.text.count("found no driver with the number -1 above") == 2


def test_cores_are_free_again_when_their_process_ends():
    held = [sys.executable, "-c", HOLD, cores._NAME.format(3)[1:]]
    with subprocess.Popen(held, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with ExitStack() as stack:
            assert not take([1, 2, 3], stack)
            with ExitStack() as other:  # the first two are not kept
                assert take([1, 2], other)
        holder.kill()
    with ExitStack() as stack:
        assert take([1, 2, 3], stack)


HOLD = """
import socket, sys, time
held = socket.socket(socket.AF_UNIX)
held.bind("\\0" + sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""
