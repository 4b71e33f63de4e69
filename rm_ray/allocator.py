"""glibc's memory allocator in the processes that this one starts on a machine without GPUs.

By default glibc returns every tensor above 32 MiB to the system when it is freed, and maps the next
one anew, so that each training step clears its pages again. With these settings, read when a
process starts (mallopt(3)), a process keeps what it has freed for the next step.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from types import MappingProxyType

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "MALLOC_ARENA_MAX": "1",  # other arenas, of threads, cannot hold blocks above 64 MiB
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**33),
    }
)
"""Environment variables, with sizes in bytes."""

FIRST_GLIBC = (2, 35)
"""Earlier ones refuse the thresholds in part, and then map smaller tensors anew too."""


def keep_freed_memory() -> None:
    """Have every process started from now on keep what it frees, unless the user has set it.

    Nothing changes where GPUs compute, or where the allocator is another one.
    """
    if shutil.which("nvidia-smi") is not None or find_glibc() < FIRST_GLIBC:
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def find_glibc() -> tuple[int, ...]:
    """Return the version of glibc; an empty tuple if the C library is another one."""
    name = "CS_GNU_LIBC_VERSION"
    version = os.confstr(name) if name in getattr(os, "confstr_names", ()) else None
    found = re.match(r"glibc (\d+)\.(\d+)", version or "")
    return tuple(int(part) for part in found.groups()) if found else ()
