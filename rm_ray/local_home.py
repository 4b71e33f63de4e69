"""This user's folder on a machine: token tables, staged checkpoints, compiled kernels."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from rm_ray.errors import InputError


def local_home() -> Path:
    """Return this machine's folder for the user's tables and staged checkpoints.

    Raises:
        InputError: it cannot be created, or another user could read or change its files.
    """
    try:
        return private_folder(Path(tempfile.gettempdir()))
    except OSError as error:
        raise InputError(
            "cannot create a folder for tables and checkpoints at "
            f"'{error.filename or 'TMPDIR'}': {error.strerror or error}; set TMPDIR to a folder "
            "that this user can write to"
        ) from None


def private_folder(parent: Path) -> Path:
    """Return this user's private folder in a shared one; create it if missing.

    Raises:
        InputError: it belongs to another user, or others may write to it.
        OSError: it cannot be created.
    """
    home = parent / f"rm_ray-{os.getuid()}"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise InputError(
            f"{home} belongs to another user, or others may write to it; delete it, or set TMPDIR "
            "to another folder"
        )
    home.chmod(0o700)
    return home
