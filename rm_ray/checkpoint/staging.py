"""A machine's local copy of a checkpoint until it is in the run's folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rm_ray.errors import TrainingError
from rm_ray.local_home import local_home
from rm_ray.storage import Storage, keep_trying

STAGED = ".staged"
"""Suffix of the marker next to a folder, written once every rank has filled its folder."""


def staging_folder(run_key: str) -> Path:
    """Return this machine's folder for checkpoints that are not in the run's folder yet."""
    return local_home() / "staging" / run_key


def mark_staged(folder: Path) -> None:
    """Mark a folder as complete on every rank; ``rescue_staged`` copies only marked folders."""
    folder.with_suffix(STAGED).touch()


def discard_staged(folder: Path) -> None:
    """Delete a folder and its marker."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(STAGED).unlink(missing_ok=True)


def describe_full_disk(folder: Path, error: Exception) -> str:
    """Return why a folder could not be written, its disk's free space, and what to do."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return (
        f"cannot write to {folder} ({error}; {free / 1e9:.2f} GB are free there). Free some space, "
        "or set TMPDIR to a larger disk"
    )


def upload_staged(folder: Path, run_folder: Storage, *, patience_s: float) -> None:
    """Copy a staged folder to the run's folder, with retries for ``patience_s``; unmark it.

    Raises:
        TrainingError: every attempt failed. The folder stays staged.
    """
    name = folder.name
    try:
        keep_trying(
            lambda: run_folder.upload(folder, name),
            what=f"copying {name} to {run_folder.path}",
            patience_s=patience_s,
        )
    except OSError as error:
        raise TrainingError(
            f"checkpoint {name} could not be copied to {run_folder.path} for {patience_s:.0f} s "
            f"({error}). It is kept in {folder}. Once the storage works again, run the same "
            "command to resume from it"
        ) from None
    folder.with_suffix(STAGED).unlink()


def rescue_staged(run_folder: Storage, run_key: str) -> None:
    """Copy checkpoints that an interrupted attempt staged on this machine to the run's folder.

    One process per machine calls it, before any rank looks for a checkpoint.
    """
    staging = staging_folder(run_key)
    for mark in sorted(staging.glob(f"rank-*/*{STAGED}")):
        folder = mark.with_suffix("")
        try:
            run_folder.upload(folder, mark.stem)
        except FileNotFoundError:
            if folder.exists():
                raise  # the run's folder is missing
            # Otherwise it has been copied, perhaps by another process that shares the folder.
    shutil.rmtree(staging, ignore_errors=True)
