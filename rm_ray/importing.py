"""What the processes that a command starts import: this package, and nothing of its folder."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])


def share_package() -> None:
    """Have every Python that is started from now on find this package, wherever it is started.

    The folder in which the command is given is not on their path: what lies there may be called
    like a package of ours (``datasets``) or of Python's (``types.py``).
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if ROOT not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, ROOT])
