"""Where a local Ray keeps its sockets and logs."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from rm_ray.errors import InputError
from rm_ray.storage import private_folder

logger = logging.getLogger(__name__)

LONGEST_SOCKET = 107
"""Bytes of the path of a socket (man 7 unix: sun_path, less its end)."""

SOCKET = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store"
"""The longest path that Ray 2.60 makes for a socket in a folder for temporary files. That of
Python's processes, ``/pymp-12345678/listener-12345678``, is shorter."""

LONGEST = LONGEST_SOCKET - len(SOCKET)
"""Bytes that the path of a folder for temporary files may have."""


def choose_ray_folder() -> str | None:
    """Return the folder for a local Ray; None where the one that Ray takes by itself will do.

    A folder for temporary files that is too long for sockets, as batch systems make them for jobs,
    gets a shorter name from here on: a link to it. Where another user's Ray was there first, it is
    one of this user's.

    Raises:
        InputError: there is none that this user may write to.
    """
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        if too_long := _too_long(os.environ.get(variable, "")):
            os.environ[variable] = _link(Path(too_long), variable)
    place = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    folder = place / "ray"
    if _is_writable(folder):
        return None
    try:
        own = private_folder(place) / "ray"
    except OSError as error:
        raise InputError(
            f"Ray can keep no sockets and logs in '{folder}': {error.strerror or error}; set "
            "RAY_TMPDIR to a folder that this user may write to"
        ) from None
    logger.info("'%s' is another user's, so Ray keeps its sockets and logs in %s", folder, own)
    return str(own)


def _too_long(path: str) -> str:
    """Return a path that has too many bytes; nothing where it has not."""
    return path if len(os.fsencode(path)) > LONGEST else ""


def _link(folder: Path, variable: str) -> str:
    """Return a short link to a folder.

    Raises:
        InputError: none can be made.
    """
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    try:
        link = private_folder(Path("/tmp")) / name
        if not link.is_symlink():
            link.symlink_to(folder)
    except (OSError, InputError) as error:
        raise InputError(
            f"{variable} '{folder}' has {len(os.fsencode(folder))} bytes, and sockets in it need "
            f"at most {LONGEST}; a link to it cannot be made in /tmp ({error}); set {variable} to "
            "a shorter one"
        ) from None
    return str(link)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
