"""The whole training state -> staged locally -> the run's folder, while training goes on."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import CheckpointUploadMode
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.staging import STAGED, staging_folder
from rm_ray.cluster.timeouts import UPLOAD_S
from rm_ray.config.train_config import CheckpointConfig
from rm_ray.errors import TrainingError
from rm_ray.runs.attempts import attempt_of, checkpoint_name, list_checkpoints
from rm_ray.runs.history import History
from rm_ray.runs.layout import HISTORY, LEDGER, PROBES, STATE
from rm_ray.runs.manifest import (
    MANIFEST,
    FoundCheckpoint,
    Manifest,
    choose_kept,
    describe_file,
    find_fault,
    rank_by,
    read_manifest,
)
from rm_ray.storage import Storage, keep_trying
from rm_ray.train.collectives import gather_objects
from rm_ray.train.engine import Engine
from rm_ray.train.progress import Progress
from rm_ray.train.slices import list_extents, read_slices, write_slices

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What must be the same before and after a resume, and what is only remembered."""

    config: dict[str, Any]
    plan_fingerprint: str
    mlflow_run_id: str | None


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a checkpoint holds beside the weights and the optimizer's state."""

    progress: Progress
    history: History
    ledger: Ledger
    skipped: frozenset[int] = frozenset()
    """Steps that were left out, or are to be."""
    probes: dict[str, Any] = field(default_factory=dict)
    """Rewards that clients of this model are compared with."""


@dataclass(kw_only=True)
class Checkpointer:
    """Saves and loads the state of one rank's engine together with the other ranks."""

    run_folder: Storage
    run_key: str
    engine: Engine
    config: CheckpointConfig
    attempt: int
    on_wait: Callable[[], None] = lambda: None
    """Called now and then while a save waits for the one before it."""
    find_held: Callable[[Sequence[FoundCheckpoint]], set[str]] = lambda _: set()
    """Names the checkpoints, of those that are whole, that must stay for now all the same."""
    num_failed: int = 0
    """Checkpoints that could not be staged."""
    _whole: list[FoundCheckpoint] = field(default_factory=list)
    _in_flight: tuple[FoundCheckpoint, threading.Event] | None = None

    def load(self, found: FoundCheckpoint) -> TrainingState:
        """Fill the engine; return the rest of the state."""
        slices = self.engine.slices()
        mine = {part.parameter: part.extent for part in slices}
        files = [name for name, entry in found.manifest.files.items() if _needs(mine, entry)]
        read_slices(slices, self._opened(found, files))
        with ExitStack() as stack:
            state = json.loads(self._open(stack, found, STATE).read_text())
            self.engine.restored(state["optimizer_updates"])
            rng = _rng_name(self.engine.rank)
            if rng in found.manifest.files:
                _set_rng_state(load_file(self._open(stack, found, rng)))
            ledger = Ledger.read(self._open(stack, found, LEDGER))
            with self._open(stack, found, HISTORY).open() as lines:
                history = History.from_json_lines(lines)
        self._whole = self._list_whole(found) if self.engine.rank == 0 else []
        return TrainingState(
            progress=Progress(**state["progress"]),
            history=history,
            ledger=ledger,
            skipped=frozenset(state.get("skipped", ())),
        )

    def save(self, state: TrainingState, identity: RunIdentity, metrics: dict[str, float]) -> float:
        """Stage every rank's part and hand it to Ray, which copies it while training goes on.

        Every rank calls it. Where a part cannot be staged, there is no checkpoint of this step,
        and training goes on. Returns the seconds spent waiting for the checkpoint before.
        """
        waited = self.wait()
        name = checkpoint_name(state.progress.step, self.attempt)
        folder = staging_folder(self.run_key) / f"rank-{self.engine.rank}" / name
        entries, fault = self._stage(folder, state, identity)
        parts = gather_objects((entries, fault))
        # All ranks are here, so the one before is whole; none copies the next one before this ends.
        self._prune()
        manifest = Manifest(
            step=state.progress.step,
            plan_fingerprint=identity.plan_fingerprint,
            metrics=metrics,
            files={file: entry for entries, _ in parts for file, entry in entries.items()},
        )
        if all(fault is None for _, fault in parts):
            fault = self._seal(folder, manifest)
        faults = [fault for fault in gather_objects(fault) if fault is not None]
        if faults:
            shutil.rmtree(folder, ignore_errors=True)
            folder.with_suffix(STAGED).unlink(missing_ok=True)
            self.num_failed += 1
            logger.warning(
                "there is no checkpoint of step %d, and training goes on: %s",
                state.progress.step,
                faults[0],
            )
            return waited
        done = threading.Event()
        self._in_flight = (FoundCheckpoint(name=name, manifest=manifest), done)
        ray.train.report(
            {"step": state.progress.step, **metrics},
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=lambda local, name: self._upload(Path(local.path), name, done),
            delete_local_checkpoint_after_upload=True,
        )
        return waited

    def wait(self) -> float:
        """Wait until this rank's part of the checkpoint in flight has arrived; return how long.

        Raises:
            TimeoutError: it has not, long after the storage's patience is over.
        """
        started = time.monotonic()
        if self._in_flight is not None:
            found, done = self._in_flight
            limit = self.config.storage_patience_s + UPLOAD_S
            while not done.wait(1.0):
                if time.monotonic() - started > limit:
                    raise TimeoutError(f"{found.name} was not copied within {limit:.0f} s")
                self.on_wait()
            self._whole.append(found)
            self._in_flight = None
        return time.monotonic() - started

    def finish(self) -> None:
        """Wait until every rank's part has arrived, and delete what is not to be kept."""
        self.wait()
        gather_objects(None)
        self._prune()

    @property
    def last(self) -> str | None:
        """The newest checkpoint in the run's folder."""
        return self.run_folder.join(max(f.name for f in self._whole)) if self._whole else None

    @property
    def last_step(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return max((found.manifest.step for found in self._whole), default=0)

    @property
    def best(self) -> str | None:
        """The best checkpoint in the run's folder by the metric; the newest where there is none."""
        if self.config.keep_best_by is None or not self._whole:
            return self.last
        return self.run_folder.join(rank_by(self._whole, self.config.keep_best_by)[0].name)

    def _stage(
        self, folder: Path, state: TrainingState, identity: RunIdentity
    ) -> tuple[dict[str, Any], str | None]:
        """Write this rank's files; return what they are, or what went wrong."""
        engine = self.engine
        ledger = Ledger(counts=engine.sum_counts(state.ledger.counts))
        slices, rng = f"slices-{engine.rank:05d}.safetensors", _rng_name(engine.rank)
        names = [slices, rng]
        try:
            (folder / LEDGER).parent.mkdir(parents=True)
            write_slices(engine.slices(), folder / slices)
            save_file(_rng_state(), folder / rng)
            if engine.rank == 0:
                names += [STATE, HISTORY, LEDGER, PROBES]
                contents = {
                    "progress": asdict(state.progress),
                    "skipped": sorted(state.skipped),
                    "world_size": engine.world_size,
                    "zero_stage": engine.zero_stage,
                    "optimizer_updates": engine.num_updates,
                    **asdict(identity),
                }
                (folder / STATE).write_text(json.dumps(contents, indent=2))
                (folder / HISTORY).write_text(state.history.to_json_lines())
                (folder / PROBES).write_text(json.dumps(state.probes))
                ledger.check(state.progress.episode, num_skipped=len(state.skipped))
                ledger.write(folder / LEDGER)
            entries = {name: describe_file(folder / name) for name in names}
            entries[slices]["extents"] = list_extents(folder / slices)
        except (OSError, SafetensorError) as error:
            return {}, self._describe_full(folder, error)
        return entries, None

    def _seal(self, folder: Path, manifest: Manifest) -> str | None:
        """Add the manifest and the mark that says that all is staged; return what went wrong."""
        try:
            if self.engine.rank == 0:
                (folder / MANIFEST).write_text(manifest.to_json())
            folder.with_suffix(STAGED).touch()
        except OSError as error:
            return self._describe_full(folder, error)
        return None

    def _describe_full(self, folder: Path, error: Exception) -> str:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        return (
            f"rank {self.engine.rank} cannot write to {folder} ({error}; {free / 1e9:.2f} GB are "
            "free there). Free some space, or set TMPDIR to a larger disk"
        )

    def _upload(self, local: Path, name: str, done: threading.Event) -> ray.train.Checkpoint:
        """Copy this rank's part; runs in a thread of Ray's."""
        patience = self.config.storage_patience_s
        try:
            keep_trying(
                lambda: self.run_folder.upload(local, name),
                what=f"copying {name} to {self.run_folder.path}",
                patience_s=patience,
            )
        except OSError as error:
            raise TrainingError(
                f"checkpoint {name} could not be copied to {self.run_folder.path} for "
                f"{patience:.0f} s "
                f"({error}). It is kept in {local}; once the storage works, the same command goes "
                "on from it"
            ) from None
        local.with_suffix(STAGED).unlink()
        done.set()
        return ray.train.Checkpoint(
            self.run_folder.join(name), filesystem=self.run_folder.filesystem
        )

    def _prune(self) -> None:
        """Delete what is not to be kept, whole or not; the newest whole one always stays.

        Raises:
            TrainingError: the newest, which every rank has copied, is not there.
        """
        if self.engine.rank != 0 or not self._whole:
            return
        config = self.config
        newest = max(self._whole, key=lambda found: found.name)
        try:
            if fault := find_fault(self.run_folder, newest.name, newest.manifest, shares=0):
                raise TrainingError(
                    f"every worker has copied {newest.name} to {self.run_folder.path}, but "
                    f"{fault}: "
                    "run.storage_path is not the same folder on all machines. The checkpoints "
                    "before it are kept"
                )
            chosen = choose_kept(self._whole, keep=config.keep, best_by=config.keep_best_by)
            kept = {found.name for found in chosen} | self.find_held(self._whole)
            self._whole = [found for found in self._whole if found.name in kept]
            for name in list_checkpoints(self.run_folder):
                if name not in kept and attempt_of(name) <= self.attempt:
                    self.run_folder.delete(name)
        except OSError as error:
            logger.warning("old checkpoints stay for now: %s", error)

    def _list_whole(self, newest: FoundCheckpoint) -> list[FoundCheckpoint]:
        """Return the checkpoint that was found and the older ones that are whole too."""
        older = [name for name in list_checkpoints(self.run_folder) if name < newest.name]
        manifests = {name: read_manifest(self.run_folder, name) for name in older}
        return [newest] + [
            FoundCheckpoint(name=name, manifest=manifest)
            for name, manifest in manifests.items()
            if manifest is not None
            and find_fault(self.run_folder, name, manifest, shares=0) is None
        ]

    def _opened(self, found: FoundCheckpoint, files: Iterable[str]) -> Iterator[Path]:
        """Give one file after another, so that no more than one copy lies on this machine."""
        for file in files:
            with self.run_folder.local_copy(f"{found.name}/{file}") as path:
                yield path

    def _open(self, stack: ExitStack, found: FoundCheckpoint, file: str) -> Path:
        return stack.enter_context(self.run_folder.local_copy(f"{found.name}/{file}"))


def _needs(mine: dict[str, tuple[int, int]], entry: dict[str, Any]) -> bool:
    """Tell whether a file holds something of what a rank holds."""
    return any(
        first < mine[parameter][1] and mine[parameter][0] < last
        for parameter, extents in entry.get("extents", {}).items()
        if parameter in mine
        for first, last in extents
    )


def _rng_name(rank: int) -> str:
    return f"rng-{rank:05d}.safetensors"


def _rng_state() -> dict[str, torch.Tensor]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), **{f"cuda:{i}": state for i, state in enumerate(cuda)}}


def _set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state.pop("cpu"))
    if torch.cuda.is_available() and len(state) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state[f"cuda:{i}"] for i in range(len(state))])
