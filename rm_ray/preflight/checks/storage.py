"""Checks of the run's storage and of disk space for checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.preflight.checks.verdict import Verdict, fail, ok, warn
from rm_ray.preflight.checks.wording import count, gigabytes, list_first
from rm_ray.preflight.machines import DRIVER_FILE, MachineReport
from rm_ray.storage import Storage

AT_ONCE = 2
"""Checkpoints besides the kept ones: one being copied, one about to be deleted."""

CHECKPOINT = 12
"""Bytes of a checkpoint per parameter: the weight and AdamW's two moments, in float32."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of what a run writes."""

    checkpoint: int
    """What is trained, and AdamW's moments of it."""

    export: int
    """The model, or its adapter, or both."""

    @classmethod
    def of(cls, config: TrainConfig, *, num_parameters: int, num_trained: int) -> Sizes:
        """Return the sizes for the numbers of all and of the trained parameters.

        An export is in ``model.dtype``.
        """
        lora = config.lora
        written = num_parameters * lora.writes_merged + num_trained * lora.writes_adapter
        width = {"float32": 4, "bfloat16": 2}[config.model.dtype]
        return cls(checkpoint=CHECKPOINT * num_trained, export=width * written)


@contextmanager
def open_exchange(storage: Storage) -> Iterator[str]:
    """Yield the name of a temporary storage folder with a file that every machine should read.

    Raises:
        InputError: the storage cannot be written.
    """
    storage.check_writable()
    token = f".preflight-{uuid4().hex}"
    storage.folder(token).write_text(DRIVER_FILE, token)
    try:
        yield token
    finally:
        storage.delete(token)


def list_answers(storage: Storage, token: str) -> set[str]:
    """Return the names of the files that machines wrote into an exchange folder."""
    return {entry.name for entry in storage.list(token)} - {DRIVER_FILE}


def check_storage(
    reports: Sequence[MachineReport], answers: Collection[str], storage: Storage
) -> Verdict:
    """Check that every machine read the driver's file, and that the driver sees all of theirs.

    ``answers`` holds the machines' files that the driver found.
    """
    wrong = [f"{report.name}: {report.storage_error}" for report in reports if report.storage_error]
    if wrong:
        remedy = "set run.storage_path to one folder or URI that every machine can write"
        return fail("storage", list_first(wrong), remedy)
    if len(answers) < len(reports):
        found = f"the driver sees the files of {len(answers)} of {len(reports)} machines"
        return fail("storage", found, "set run.storage_path to the same folder on every machine")
    found = f"{storage.path}, written and read back on {count(len(reports), 'machine')}"
    return ok("storage", found)


def check_disk(
    storage: Storage,
    checkpoint: CheckpointConfig,
    sizes: Sizes,
    *,
    num_steps: int,
    num_there: int = 0,
) -> Verdict:
    """Check that the storage has room for the run's checkpoints and its export.

    ``num_there`` is the number of checkpoints that the run already has.
    """
    taken = -(-num_steps // checkpoint.every_steps) if checkpoint.every_steps else 1
    kept = min(checkpoint.keep + AT_ONCE, taken)
    size = kept * sizes.checkpoint + sizes.export
    needed = size - min(kept, num_there) * sizes.checkpoint
    what = f"{count(kept, 'checkpoint')} and the model take up to {gigabytes(size)}"
    if num_there:
        what += f", of which {gigabytes(size - needed)} already exist"
    if not storage.is_local:
        return ok("disk", f"{what}; the free space is unknown")
    free = shutil.disk_usage(_nearest(Path(storage.path))).free
    found = f"{what}; {gigabytes(free)} are free at {storage.path}"
    if free < needed:
        return fail("disk", found, "free space, lower checkpoint.keep, or set run.storage_path")
    return ok("disk", found)


def _nearest(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def check_staging(reports: Sequence[MachineReport], sizes: Sizes) -> Verdict:
    """Check that machines have room to stage a checkpoint before it is copied to the storage.

    ``reports`` covers machines that may get workers. How many each gets is unknown, so each needs
    room for a full checkpoint.
    """
    wrong = [f"{report.name}: {report.staging_error}" for report in reports if report.staging_error]
    if wrong:
        return fail("staging", list_first(wrong), "set TMPDIR to a folder that this user can write")
    needed = sizes.checkpoint + sizes.export
    what = f"a checkpoint and the model take up to {gigabytes(needed)}"
    small = [
        f"{report.name} has {gigabytes(report.staging_free)} free in {report.staging}"
        for report in reports
        if report.staging_free < needed
    ]
    if small:
        remedy = "free space, or set TMPDIR to a larger disk; no checkpoint is saved if it is full"
        return warn("staging", f"{what}: {list_first(small)}", remedy)
    least = min(report.staging_free for report in reports)
    return ok(
        "staging", f"{what}; at least {gigabytes(least)} are free on machines that may get workers"
    )
