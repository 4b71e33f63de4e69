"""The folder for a local Ray's sockets and logs."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from rm_ray.errors import InputError
from rm_ray.local_home import private_folder

logger = logging.getLogger(__name__)

LONGEST_SOCKET = 107
"""Maximum bytes of a socket path (man 7 unix: sun_path without the final NUL)."""

SOCKET = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store"
"""Longest socket path that Ray 2.60 creates below the temporary folder. Python's own, such as
``/pymp-12345678/listener-12345678``, is shorter."""

LONGEST = LONGEST_SOCKET - len(SOCKET)
"""Maximum bytes of the path of a temporary folder."""


def choose_ray_folder() -> str | None:
    """Return the folder for a local Ray; None if Ray's default works.

    If the path of the temporary folder is too long for sockets (batch systems create such paths per
    job), the environment is changed to a short link to it. If another user owns Ray's default
    folder, use a private one.

    Raises:
        InputError: this user cannot write to any of them.
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
            f"Ray cannot keep sockets and logs in '{folder}': {error.strerror or error}; set "
            "RAY_TMPDIR to a folder that this user can write to"
        ) from None
    logger.info("'%s' belongs to another user; Ray keeps its sockets and logs in %s", folder, own)
    return str(own)


def _too_long(path: str) -> str:
    """Return the path if it has too many bytes, else an empty string."""
    return path if len(os.fsencode(path)) > LONGEST else ""


def _link(folder: Path, variable: str) -> str:
    """Return a short link to a folder.

    Raises:
        InputError: the link cannot be created.
    """
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    try:
        link = private_folder(Path("/tmp")) / name
        if not link.is_symlink():
            link.symlink_to(folder)
    except (OSError, InputError) as error:
        raise InputError(
            f"{variable} '{folder}' has {len(os.fsencode(folder))} bytes, but sockets allow "
            f"at most {LONGEST}, and a link to it cannot be created in /tmp ({error}); set "
            f"{variable} to a shorter path"
        ) from None
    return str(link)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
