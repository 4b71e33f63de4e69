"""What an attempt leaves running on this machine, and its end."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def adopting() -> Iterator[None]:
    """Become the parent of processes whose own parent dies, so that none is left behind."""
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
    """End what an attempt left running on this machine: its own Ray, where it started one.

    Those are this process's children but for the ``others``, and theirs: what is left without its
    parent becomes a child of the supervisor, where Ray's processes would end by themselves under
    init.
    """
    for _ in range(10):  # what cannot be killed, as in a dead network mount, is left
        orphans = [child for child in psutil.Process().children() if child not in others]
        if not orphans:
            return
        left = [below for orphan in orphans for below in _tree(orphan)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=3)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
