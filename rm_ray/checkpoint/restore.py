"""A checkpoint in the run's folder -> the engine and the training state of one rank."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rm_ray.checkpoint.content import TrainingState
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.checkpoint.rng_state import read_rng_state, rng_file
from rm_ray.runs.history import History
from rm_ray.runs.layout import HISTORY, LEDGER, LOSSES, STATE
from rm_ray.runs.manifest import Checkpoint
from rm_ray.runs.record import refuse_other_base
from rm_ray.storage import Storage
from rm_ray.train.engine import Engine
from rm_ray.train.progress import Progress
from rm_ray.train.slices import Extent, read_slices

logger = logging.getLogger(__name__)


def restore_checkpoint(
    run_folder: Storage, found: Checkpoint, engine: Engine, *, base_hash: str = ""
) -> TrainingState:
    """Fill this rank's engine and random number generators; return the rest of the state.

    Every rank calls it. Any number of ranks, at any ZeRO stage, may have written the checkpoint.
    The returned ledger is the sum over ranks, and losses, if it has any, are those of all ranks.
    ``base_hash`` is that of the base model, if only a part of it is trained.

    Raises:
        InputError: the checkpoint was written for another base model.
    """
    checkpoint = run_folder.folder(found.name)
    files = found.manifest.files
    slices = engine.slices()
    mine = {part.parameter: part.extent for part in slices}
    needed = [name for name, entry in files.items() if overlaps(mine, entry.get("extents", {}))]
    read_slices(slices, checkpoint.local_copies(needed))
    with ExitStack() as stack:

        def local(name: str) -> Path:
            return stack.enter_context(checkpoint.local_copy(name))

        record: dict[str, Any] = json.loads(local(STATE).read_text())
        name = record["config"].get("model", {}).get("name_or_path", "")
        refuse_other_base(record.get("base_hash", ""), base_hash, model=name)
        if base_hash and not record.get("base_hash") and engine.rank == 0:
            logger.warning(
                "%s holds only what is trained, and no hash of its base model: whether '%s' has "
                "changed since then is not known",
                found.name,
                name,
            )
        engine.resume(record["optimizer_updates"])
        if rng_file(engine.rank) in files:
            read_rng_state(local(rng_file(engine.rank)))
        with local(HISTORY).open() as lines:
            history = History.from_json_lines(lines)
        return TrainingState(
            progress=Progress(**record["progress"]),
            history=history,
            ledger=Ledger.read(local(LEDGER)),
            skipped=frozenset(record.get("skipped", ())),
            losses=PairLosses.read(local(LOSSES)) if LOSSES in files else None,
        )


def overlaps(mine: dict[str, Extent], extents: dict[str, list[Extent]]) -> bool:
    """Return whether a file with these ``extents`` has any element that this rank needs."""
    return any(
        first < mine[parameter][1] and mine[parameter][0] < last
        for parameter, stored in extents.items()
        if parameter in mine
        for first, last in stored
    )
