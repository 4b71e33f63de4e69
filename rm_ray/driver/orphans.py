"""Cleanup of processes that an attempt leaves running on this machine."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def adopting() -> Iterator[None]:
    """Adopt descendants whose parent dies, so that none is left behind (Linux only)."""
    if sys.platform != "linux":
        yield
        return
    set_child_subreaper, process_control = 36, ctypes.CDLL(None).prctl
    process_control(set_child_subreaper, 1, 0, 0, 0)
    try:
        yield
    finally:
        process_control(set_child_subreaper, 0, 0, 0, 0)


def end_orphans(others: Sequence[psutil.Process]) -> None:
    """Kill processes that an attempt left running on this machine, such as its local Ray.

    These are this process's children, except ``others``, and all their descendants. The supervisor
    adopts orphans; Ray's processes exit by themselves only under init.
    """
    for _ in range(10):  # give up on processes that cannot be killed (dead network mounts)
        kept = {below for other in others for below in _tree(other)}
        left = [each for each in psutil.Process().children(recursive=True) if each not in kept]
        if not left:
            return
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=3)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
