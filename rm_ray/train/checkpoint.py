"""The whole training state <-> ``ray.train.Checkpoint``, with a manifest that proves it whole."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from pyarrow import fs as pafs

from rm_ray.errors import InputError
from rm_ray.storage import Storage
from rm_ray.tracking.history import History
from rm_ray.train.engine import Engine
from rm_ray.train.progress import Progress

logger = logging.getLogger(__name__)

MANIFEST, STATE, HISTORY = "manifest.json", "state.json", "history.jsonl"


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must be the same before and after a resume, and what is only remembered."""

    config: dict[str, Any]
    plan_fingerprint: str
    mlflow_run_id: str | None


def save_checkpoint(
    engine: Engine,
    progress: Progress,
    history: History,
    identity: RunIdentity,
    metrics: dict[str, float],
) -> None:
    """Write every rank's part locally and report it to Ray, which copies it to the run's storage.

    Every rank calls it.
    """
    with tempfile.TemporaryDirectory(prefix="rm_ray-checkpoint-") as name:
        folder = Path(name)
        engine.save(folder)
        torch.save(_rng_state(), folder / _rng_name(engine.rank))
        if engine.rank == 0:
            state = {
                "progress": asdict(progress),
                "world_size": engine.world_size,
                "zero_stage": engine.zero_stage,
                **asdict(identity),
            }
            (folder / STATE).write_text(json.dumps(state, indent=2))
            (folder / HISTORY).write_text(history.to_json_lines())
        parts = engine.gather_objects(describe_files(folder))
        if engine.rank == 0:
            files = {name: entry for part in parts for name, entry in part.items()}
            manifest = {"step": progress.step, "files": files}
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))
        checkpoint = ray.train.Checkpoint.from_directory(name)
        ray.train.report({"step": progress.step, **metrics}, checkpoint=checkpoint)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of each file in a folder, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_fault(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None if every file is as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or unreadable"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        if _sha256(path) != entry["sha256"]:
            return f"{name} does not have the checksum of its manifest"
    return None


def restore_checkpoint(
    engine: Engine, run: Storage, plan_fingerprint: str
) -> tuple[Progress, History] | None:
    """Load the newest valid checkpoint of the run into the engine; None where there is none.

    Every rank calls it.

    Raises:
        InputError: the checkpoint belongs to other data or another number of ZeRO shards.
    """
    for checkpoint in _candidates(run):
        with checkpoint.as_directory() as name:
            folder = Path(name)
            fault = find_fault(folder) if engine.rank == 0 else None
            fault = engine.gather_objects(fault)[0]
            if fault is not None:
                if engine.rank == 0:
                    logger.warning("checkpoint %s is not used: %s", checkpoint.path, fault)
                continue
            state = json.loads((folder / STATE).read_text())
            _check(state, engine, plan_fingerprint)
            engine.load(folder)
            if (folder / _rng_name(engine.rank)).exists():
                rng = torch.load(folder / _rng_name(engine.rank), weights_only=True)
                torch.set_rng_state(rng["cpu"])
                if rng["cuda"]:
                    torch.cuda.set_rng_state_all(rng["cuda"])
            with (folder / HISTORY).open() as lines:
                return Progress(**state["progress"]), History.from_json_lines(lines)
    return None


def _candidates(run: Storage) -> Iterator[ray.train.Checkpoint]:
    """Yield Ray's latest checkpoint and then the others of the run's folder, newest first."""
    latest = ray.train.get_checkpoint()
    if latest is not None:
        yield latest
    others = [
        info.path
        for info in reversed(run.list())
        if info.type == pafs.FileType.Directory and info.base_name.startswith("checkpoint_")
    ]
    for path in others:
        if latest is None or Path(path) != Path(latest.path):
            yield ray.train.Checkpoint(path, filesystem=run.filesystem)


def _check(state: dict[str, Any], engine: Engine, plan_fingerprint: str) -> None:
    if state["plan_fingerprint"] != plan_fingerprint:
        raise InputError(
            "the run's checkpoint was made from other pairs, seed or batch size than those of now; "
            "give this run another run.name, or the old data back"
        )
    if state["zero_stage"] > 0 and state["world_size"] != engine.world_size:
        raise InputError(
            f"cluster.num_workers is {engine.world_size}, but the run's ZeRO-{state['zero_stage']} "
            f"checkpoint is sharded over {state['world_size']} workers; resume with that many"
        )


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.pt"


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
