"""A small machine's cores: each worker of a local Ray trains on its own, and all else has the rest.

Ray's processes wake up a thousand times a second together. Where few cores are spare, the system
puts some of them on one that trains, which waits meanwhile for as long as the other one is idle.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psutil

_NAME = "\0rm_ray-core-{}"
"""Names without a file, which the system frees as soon as their process has ended."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cores:
    """The cores of each worker, and of all other threads of the run's processes."""

    workers: tuple[tuple[int, ...], ...]
    rest: tuple[int, ...]

    def use(self, worker: int) -> None:
        """Keep this thread, and the Python threads beside it, to a worker's cores.

        A thread that prepares batches would hold the interpreter's lock while it waits for a core
        of the rest. Worker 0 keeps all other threads of the run's processes to the rest.
        """
        os.sched_setaffinity(0, self.workers[worker])
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and thread.native_id is not None:
                with suppress(OSError):  # it has ended
                    os.sched_setaffinity(thread.native_id, self.workers[worker])
        if worker == 0:
            every = {*self.rest}.union(*self.workers)
            raylet = next(filter(_is_raylet, psutil.Process().parents()))
            driver = raylet.parent()
            keep_to([] if driver is None else _family(driver), {*self.rest}, only_from=every)


@contextmanager
def own_cores(num_workers: int, cpus_per_worker: int) -> Iterator[Cores | None]:
    """Take cores for the workers that this process starts; None if they have none of their own.

    They have some if Ray is a child of this process, so that nobody else uses it; if there is a
    rest, which is no larger than what the workers take, since otherwise the system finds room; if
    no core is half of one; and if no other run has taken one of them. (Runs in containers do not
    see each other.)
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = num_workers * cpus_per_worker
    spare = len(allowed) - count
    with ExitStack() as stack:
        is_small = 0 < spare <= count and len(allowed) == psutil.cpu_count(logical=False)
        if not (is_small and any(map(_is_raylet, _family(psutil.Process())))):
            yield None
            return
        taken = allowed[-count:]
        if not take(taken, stack):
            yield None
            return
        stack.callback(lambda: keep_to(_family(psutil.Process()), {*allowed}))
        logger.info("the workers train on cores %s of %s", _listed(taken), _listed(allowed))
        starts = range(0, count, cpus_per_worker)
        workers = tuple(tuple(taken[first : first + cpus_per_worker]) for first in starts)
        yield Cores(workers=workers, rest=tuple(allowed[:spare]))


def take(cores: Iterable[int], stack: ExitStack) -> bool:
    """Take cores until ``stack`` closes; return whether no other process has one of them."""
    for core in cores:
        name = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            name.bind(_NAME.format(core))
        except OSError:
            return False
    return True


def keep_to(
    processes: Iterable[psutil.Process], cores: set[int], *, only_from: set[int] | None = None
) -> None:
    """Keep all threads of processes, and those that they start from now on, to cores.

    With ``only_from``, only threads that may use exactly these until now.
    """
    for process in processes:
        with suppress(psutil.Error):
            for thread in process.threads():
                with suppress(OSError):  # it has ended
                    if only_from in (None, os.sched_getaffinity(thread.id)):
                        os.sched_setaffinity(thread.id, cores)


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


def _listed(cores: Iterable[int]) -> str:
    return ", ".join(map(str, cores))
