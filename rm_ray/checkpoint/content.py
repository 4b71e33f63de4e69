"""The files of a checkpoint: each rank's slices and generators, and rank 0's record of the run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.pair_losses import PairLosses
from rm_ray.checkpoint.rng_state import rng_file, write_rng_state
from rm_ray.runs.history import History
from rm_ray.runs.layout import HISTORY, LEDGER, LOSSES, REFERENCE_REWARDS, STATE
from rm_ray.runs.manifest import describe_file
from rm_ray.train.engine import Engine
from rm_ray.train.progress import Progress
from rm_ray.train.slices import buffer_slices, list_extents, write_slices


@dataclass(kw_only=True)
class TrainingState:
    """The state of a run between steps, apart from weights and optimizer state."""

    progress: Progress = field(default_factory=Progress)
    history: History = field(default_factory=History)
    ledger: Ledger
    """Pairs that this rank trained on; on rank 0, also those of all ranks before it resumed."""
    skipped: frozenset[int] = frozenset()
    """Steps to skip, counted from 0."""
    losses: PairLosses | None = None
    """Losses of the pairs that this rank trained on, and on rank 0 of all ranks' before it resumed;
    None unless they are kept."""


@dataclass(frozen=True, kw_only=True)
class CheckpointContent:
    """The content of a checkpoint's files, apart from the engine's state."""

    state: TrainingState
    reference_rewards: dict[str, Any]
    """Rewards to compare the model's clients with."""
    settings: dict[str, Any]
    """The run's settings, for people to read."""
    plan_fingerprint: str
    mlflow_run_id: str | None
    base_hash: str = ""
    """Hash of the base model, if only a part of it is trained and stored; empty if unknown."""


def slices_file(rank: int) -> str:
    """Return the name of a rank's file of weights and optimizer state."""
    return f"slices-{rank:05d}.safetensors"


def count_writers(files: dict[str, dict[str, Any]]) -> int:
    """Return the number of ranks that wrote a checkpoint, from its manifest's files."""
    return sum(name.startswith("slices-") for name in files)


def write_content(
    folder: Path,
    engine: Engine,
    content: CheckpointContent,
    ledger: Ledger,
    losses: PairLosses | None = None,
) -> dict[str, dict[str, Any]]:
    """Write this rank's files into a new folder; return their manifest entries by name.

    ``ledger`` is the sum over ranks, and ``losses`` are those of all ranks, if they are kept.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    (folder / LEDGER).parent.mkdir(parents=True)
    slices, rng = slices_file(engine.rank), rng_file(engine.rank)
    buffers = buffer_slices(engine.module, is_written=engine.rank == 0)
    write_slices([*engine.slices(), *buffers], folder / slices)
    write_rng_state(folder / rng)
    names = [slices, rng]
    if engine.rank == 0:
        names += _write_record(folder, engine, content, ledger)
        if losses is not None:
            losses.write(folder / LOSSES)
            names.append(LOSSES)
    entries = {name: describe_file(folder / name) for name in names}
    entries[slices]["extents"] = list_extents(folder / slices)
    return entries


def _write_record(
    folder: Path, engine: Engine, content: CheckpointContent, ledger: Ledger
) -> list[str]:
    """Write rank 0's files for all ranks; return their names."""
    state = content.state
    ledger.check(state.progress.episode, num_skipped=len(state.skipped))
    record = {
        "progress": asdict(state.progress),
        "skipped": sorted(state.skipped),
        "world_size": engine.world_size,
        "zero_stage": engine.zero_stage,
        "optimizer_updates": engine.num_updates,
        "config": content.settings,
        "plan_fingerprint": content.plan_fingerprint,
        "mlflow_run_id": content.mlflow_run_id,
        "base_hash": content.base_hash,
    }
    (folder / STATE).write_text(json.dumps(record, indent=2))
    (folder / HISTORY).write_text(state.history.to_json_lines())
    (folder / REFERENCE_REWARDS).write_text(json.dumps(content.reference_rewards))
    ledger.write(folder / LEDGER)
    return [STATE, HISTORY, LEDGER, REFERENCE_REWARDS]
