"""The collective search for the checkpoint to resume from."""

from __future__ import annotations

import logging

from rm_ray.errors import InputError
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.manifest import Checkpoint, find_fault, read_manifest
from rm_ray.storage import Storage
from rm_ray.train.collectives import gather_objects

logger = logging.getLogger(__name__)


def find_checkpoint(
    run_folder: Storage, plan_fingerprint: str, *, rank: int = 0, world_size: int = 1
) -> Checkpoint | None:
    """Return the run's newest intact checkpoint; None if it has none.

    Every rank calls it and checks a share of the files.

    Raises:
        InputError: the checkpoint was written with other data.
        OSError: the storage fails.
    """
    gather_objects(None)  # wait until every machine has uploaded its staged checkpoints
    for name in gather_objects(list_checkpoints(run_folder) if rank == 0 else [])[0]:
        manifest = read_manifest(run_folder, name)
        fault = find_fault(run_folder, name, manifest, share=rank, shares=world_size)
        faults = [fault for fault in gather_objects(fault) if fault is not None]
        if faults or manifest is None:
            logger.warning("checkpoint %s is not used: %s", run_folder.join(name), faults[0])
            continue
        if manifest.plan_fingerprint != plan_fingerprint:
            raise InputError(
                f"checkpoint {name} was written with other pairs, seed or batch size than this "
                "run's. Use another run.name, or restore the original data and settings"
            )
        return Checkpoint(name=name, manifest=manifest)
    return None
