"""Import path of the processes that a command starts."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])


def share_package() -> None:
    """Make this package importable by every Python process started from now on, in any folder.

    The working directory is kept off their path, because a file in it may shadow a dependency
    (``datasets``) or a standard module (``types.py``).
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if ROOT not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, ROOT])
