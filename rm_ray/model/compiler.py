"""What Triton compiles Liger's kernels with on each machine: a C compiler and Python's headers."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

INSTALL = (
    "install gcc and Python's headers there ('apt-get install gcc python3-dev', or a Python from "
    "uv or conda, which brings them), or set CC to a compiler"
)
"""What to do where something is missing."""


def find_missing(environment: Mapping[str, str] = os.environ, include: Path | None = None) -> str:
    """Return what Triton misses on this machine to build its launcher; empty where it has all.

    It takes CC, else gcc, else clang, and ``Python.h`` of the Python it runs in
    (triton/runtime/build.py). CUDA's own tools come with Triton.
    """
    missing = []
    path = environment.get("PATH", os.defpath)
    named = environment.get("CC")
    if named is not None and shutil.which(named, path=path) is None:
        missing.append(f"the compiler '{named}' that CC names")
    elif named is None and not any(shutil.which(name, path=path) for name in ("gcc", "clang")):
        missing.append("a C compiler (gcc)")
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = include or Path(sysconfig.get_path("include", scheme))
    if not (headers / "Python.h").is_file():
        missing.append(f"Python's headers ({headers}/Python.h)")
    return " and ".join(missing)
