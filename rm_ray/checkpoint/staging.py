"""Where a machine keeps a run's checkpoints until they have been copied to the run's folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from rm_ray.storage import Storage, local_home

STAGED = ".staged"
"""Suffix of the mark beside a folder that every rank has filled."""


def staging_folder(run_key: str) -> Path:
    """Return where this machine keeps a run's checkpoints until they are in the run's folder."""
    return local_home() / "staging" / run_key


def rescue_staged(run_folder: Storage, run_key: str) -> None:
    """Bring what an interrupted attempt staged on this machine to the run's folder.

    One process of each machine calls it, before any looks for a checkpoint.
    """
    staging = staging_folder(run_key)
    for mark in sorted(staging.glob(f"rank-*/*{STAGED}")):
        folder = mark.with_suffix("")
        try:
            run_folder.upload(folder, mark.stem)
        except FileNotFoundError:
            if folder.exists():
                raise  # it is the run's folder that is missing
            # copied already, or by another process that shares the folder
    shutil.rmtree(staging, ignore_errors=True)
