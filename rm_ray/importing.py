"""Makes this package importable in the processes that a command starts, from any folder."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])


def share_package() -> None:
    """Put the folder of this package on the path of every Python that is started from now on."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if ROOT not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, ROOT])
