"""Import path of the processes that a command starts, and packages kept out of an import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ABSENT: Any = None
"""In ``sys.modules``: the module cannot be imported."""

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


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Hide a package from what is imported meanwhile, unless it is imported already.

    For packages that take a second to import, and that others import if they are there.
    """
    is_hidden = sys.modules.setdefault(name, _ABSENT) is _ABSENT
    try:
        yield
    finally:
        if is_hidden:
            del sys.modules[name]
