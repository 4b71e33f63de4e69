"""Where a machine keeps a run's checkpoints until they have been copied to the run's folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from rm_ray.storage import Storage

STAGED = ".staged"
"""Suffix of the mark beside a folder that every rank has filled."""


def staging_folder(run_key: str) -> Path:
    """Return where this machine keeps a run's checkpoints until they are in the run's folder."""
    return Path(tempfile.gettempdir()) / f"rm_ray-{os.getuid()}" / "staging" / run_key


def rescue_staged(run: Storage, run_key: str) -> None:
    """Bring what an interrupted attempt staged on this machine to the run's folder.

    One process of each machine calls it, before any looks for a checkpoint.
    """
    staging = staging_folder(run_key)
    for mark in sorted(staging.glob(f"rank-*/*{STAGED}")):
        with suppress(FileNotFoundError):  # copied already, or by another that shares the folder
            run.upload(mark.with_suffix(""), mark.stem)
    shutil.rmtree(staging, ignore_errors=True)
