"""The C compiler and Python headers that Triton needs to compile Liger's kernels."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

INSTALL = (
    "install gcc and Python's headers there ('apt-get install gcc python3-dev', or use a Python "
    "from uv or conda, which includes the headers), or set CC to a compiler"
)
"""What to do if something is missing."""


def find_missing(environment: Mapping[str, str] = os.environ, include: Path | None = None) -> str:
    """Return what this machine lacks to build Triton's launcher; empty if it lacks nothing.

    Triton uses CC, or else gcc or clang, and ``Python.h`` of the running Python
    (triton/runtime/build.py). It ships CUDA's own tools.
    """
    missing = []
    path = environment.get("PATH", os.defpath)
    named = environment.get("CC")
    if named is not None and shutil.which(named, path=path) is None:
        missing.append(f"the compiler '{named}' set in CC")
    elif named is None and not any(shutil.which(name, path=path) for name in ("gcc", "clang")):
        missing.append("a C compiler (gcc)")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = include or Path(sysconfig.get_path("include", scheme))
    if not (headers / "Python.h").is_file():
        missing.append(f"Python's headers ({headers}/Python.h)")
    return " and ".join(missing)
