"""A small machine's cores: the worker of a local Ray trains on its own, and all else has the rest.

Each of Ray's processes wakes up a hundred times a second. Where few cores are spare, the system
puts some of them on one that trains, which waits meanwhile for as long as another one is idle.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_NAME = "\0rm_ray-core-{}"
"""Names without a file, which the system frees as soon as their process has ended."""

_QUOTAS = (Path("/sys/fs/cgroup/cpu.max"), Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
"""Of a container, by either version of cgroups; it begins with ``max`` or -1 if there is none."""

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cores:
    """The cores of the worker, and of all other threads of the run's processes."""

    own: frozenset[int]
    rest: frozenset[int]
    driver: int
    """The process that started the run's Ray."""

    def use(self) -> None:
        """Keep this thread, and the Python threads beside it, to the worker's own cores.

        A thread that prepares batches would hold the interpreter's lock while it waits for a core
        of the rest. All other threads of the run's processes are kept to the rest.
        """
        beside = {t.native_id for t in threading.enumerate() if t is not threading.main_thread()}
        # Of a thread that Python does not know to have ended, another process may have the number.
        here = {thread.id for thread in psutil.Process().threads()}
        for thread in here & {threading.get_native_id(), *beside}:
            _keep(thread, self.own)
        driver = self._find_driver()
        if driver is None:
            logger.warning("found no driver with the number %d above this worker", self.driver)
        else:
            move(_family(driver), self.own | self.rest, self.rest)

    def _find_driver(self) -> psutil.Process | None:
        with suppress(psutil.Error):  # one on the way has ended, or above: the driver has
            process = psutil.Process().parent()
            while process is not None and process.pid != self.driver:
                process = process.parent()
            return process
        return None


@contextmanager
def own_cores(count: int) -> Iterator[Cores | None]:
    """Take so many cores for the worker that this process starts; None if it has none of its own.

    It has some if Ray is a child of this process, so that nobody else uses it; if there is a rest,
    which is no larger than what the worker takes, since otherwise the system finds room; if no two
    are threads of one core, and no quota says that others have a part of them; and if no other run
    has taken one. (Runs in containers do not see each other.)
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    is_small = 0 < len(allowed) - count <= count
    with ExitStack() as stack:
        if not (
            is_small
            and are_whole(allowed)
            and any(map(_is_raylet, _family(psutil.Process())))
            and take(allowed[-count:], stack)
        ):
            yield None
            return
        own, rest = frozenset(allowed[-count:]), frozenset(allowed[:-count])
        cores = Cores(own=own, rest=rest, driver=os.getpid())
        stack.callback(_give_back, cores)
        logger.info("the worker trains on %d of %d cores", count, len(allowed))
        yield cores


def are_whole(cores: Iterable[int]) -> bool:
    """Return whether no two are threads of one core, and no quota divides them among others."""
    for quota in _QUOTAS:
        with suppress(OSError):
            if not quota.read_text().startswith(("max", "-1")):
                return False
    try:
        siblings = [Path(_SIBLINGS.format(core)).read_text() for core in cores]
    except OSError:  # unknown here
        return False
    return len({*siblings}) == len(siblings)


def take(cores: Iterable[int], stack: ExitStack) -> bool:
    """Take cores until ``stack`` closes, or none if another process has one; return whether."""
    with ExitStack() as taken:
        for core in cores:
            name = taken.enter_context(socket.socket(socket.AF_UNIX))
            try:
                name.bind(_NAME.format(core))
            except OSError:
                return False
        stack.push(taken.pop_all())
        return True


def move(processes: Iterable[psutil.Process], before: Iterable[int], cores: Iterable[int]) -> None:
    """Keep all threads that may use exactly the cores ``before`` to other ones."""
    before, cores = {*before}, {*cores}
    for process in processes:
        with suppress(psutil.Error):
            for thread in process.threads():
                with suppress(OSError):  # it has ended
                    if os.sched_getaffinity(thread.id) == before:
                        _keep(thread.id, cores)


def _give_back(cores: Cores) -> None:
    processes = _family(psutil.Process())
    for some in (cores.own, cores.rest):
        move(processes, some, cores.own | cores.rest)


def _keep(thread: int, cores: Iterable[int]) -> None:
    with suppress(OSError):  # it has ended, or the cores are not this process's any more
        os.sched_setaffinity(thread, cores)


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return bool(process.name() == "raylet")
    except psutil.Error:  # it has ended
        return False


def _family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all below it."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
