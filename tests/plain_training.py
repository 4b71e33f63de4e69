"""A small training on plain ranks, without Ray Train: the worker's loop with stand-ins."""

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from made_cache import Row
from tables import builtin_table, lists_table, make_table

from rm_ray.batches.loading import LoadedMicroBatch, load_step
from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.checkpoint.find import find_checkpoint
from rm_ray.config.sections.batch import BatchConfig
from rm_ray.config.sections.checkpoint import CheckpointConfig
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.evaluation import EvaluationConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.config.sections.run import RunConfig
from rm_ray.config.train_config import ResolvedConfig
from rm_ray.data.cache.token_table import TokenTable
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.evaluation.held_out_set import HeldOutSet
from rm_ray.evaluation.pairwise import Labels
from rm_ray.runs.history import Record
from rm_ray.runs.startup import Startup
from rm_ray.storage import Storage
from rm_ray.train import throughput
from rm_ray.train.collectives import gather_objects
from rm_ray.train.reference_rewards import choose_reference_groups
from rm_ray.worker.job import TrainJob
from rm_ray.worker.loop import train_worker

NUM_PAIRS, NUM_HELD_OUT = 24, 9
BATCH = 6
NUM_STEPS = 8
"""Two epochs of 24 pairs, 6 a step."""


class PlainHeartbeat:
    """A heartbeat that only notes what it is told."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.num_beats = 0
        self.first_step: int | None = None
        self.startup: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.reason_to_stop: str | None = None

    def enter(self, phase: str, step: int) -> None:
        """Note a phase."""
        self.phases.append((phase, step))

    def beat(self) -> None:
        """Count a beat."""
        self.num_beats += 1


class PlainChannel:
    """A channel that keeps what rank 0 sends."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.lines: list[str] = []

    def record(self, *records: Record) -> None:
        """Keep records."""
        self.records += records

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Keep a table."""
        self.tables[name] = rows

    def status(self, line: str) -> None:
        """Keep a live line."""
        self.lines.append(line)

    def mlflow_run_id(self) -> str:
        """Return an id."""
        return "mlflow-id"


@dataclass(frozen=True)
class PlainStream:
    """A rank's share of a plan, loaded in this process."""

    table: TokenTable
    plan: Plan
    rank: int
    world_size: int

    def steps(self, first_step: int, num_steps: int) -> Iterator[list[LoadedMicroBatch]]:
        """Load the steps in order."""
        for step in range(first_step, num_steps):
            yield load_step(self.table, self.plan, step, rank=self.rank, world_size=self.world_size)


@dataclass
class PlainContext:
    """A rank that no Ray Train started."""

    streams: dict[str, PlainStream]
    preempted_at_check: int = 0
    """Which check, counted from 1, finds that this rank's machine is about to be taken away."""
    reported: list[tuple[str, dict[str, float]]] = field(default_factory=list)
    num_checks: int = 0

    def dataset_shard(self, name: str) -> PlainStream:
        """Return this rank's share."""
        return self.streams[name]

    def is_preempted(self) -> bool:
        """Ask all ranks, as Ray does."""
        self.num_checks += 1
        return any(gather_objects(self.num_checks == self.preempted_at_check))

    def report(
        self, metrics: dict[str, float], folder: Path, upload: Callable[[Path], None]
    ) -> None:
        """Upload in a thread, and delete the folder."""
        self.reported.append((folder.name, metrics))

        def copy() -> None:
            upload(folder)
            shutil.rmtree(folder)

        threading.Thread(target=copy).start()


def small_config(folder: Path, **sections: Any) -> ResolvedConfig:
    """Return the settings of a run that evaluates and saves every 2 steps."""
    sections = {
        "run": RunConfig(name="plain", storage_path=str(folder), seed=3),
        "batch": BatchConfig(global_batch_size=BATCH, tokens_per_micro_batch=300),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2, epochs=2),
        "evaluation": EvaluationConfig(every_steps=2, sample_rows=3),
        "checkpoint": CheckpointConfig(every_steps=2, keep=2, keep_best_by="eval/rm/loss"),
        "cluster": ResolvedCluster(num_workers=1, cpus_per_worker=1),
        **sections,
    }
    return replace(ResolvedConfig(), **sections)


@dataclass
class PlainRank:
    """One rank of a small training, in this process."""

    job: TrainJob
    context: PlainContext
    heartbeat: PlainHeartbeat = field(default_factory=PlainHeartbeat)
    channel: PlainChannel | None = None
    rank: int = 0
    world_size: int = 1

    @classmethod
    def make(
        cls,
        folder: Path,
        config: ResolvedConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        lists: bool = False,
        rows: tuple[Sequence[Row], Sequence[Row]] | None = None,
        **job: Any,
    ) -> "PlainRank":
        """Prepare a rank; ``job`` replaces fields of the ``TrainJob``.

        ``folder`` holds the run; the tables are made in it by every process for itself. They have
        as many ``lists`` as otherwise pairs, or are made of raw ``rows`` to train on and hold out.
        """
        tables = folder / f"tables-{rank}-{uuid.uuid4().hex}"
        if rows:
            tokenizer = load_tokenizer("builtin")
            table = make_table(tables / "train", rows[0], tokenizer)
            held_out = make_table(tables / "eval", rows[1], tokenizer)
        elif lists:
            table, tokenizer = lists_table(tables / "train", NUM_PAIRS)
            held_out, _ = lists_table(tables / "eval", NUM_HELD_OUT)
        else:
            table, tokenizer = builtin_table(tables / "train", NUM_PAIRS)
            held_out, _ = builtin_table(tables / "eval", NUM_HELD_OUT, "test")
        settings = PlanSettings(
            global_batch_size=config.batch.global_batch_size,
            tokens_per_micro_batch=config.batch.tokens_per_micro_batch,
            seed=config.run.seed,
            epochs=config.optimizer.epochs,
        )
        plan = Plan(lengths=table.lengths, settings=settings)
        eval_plan = Plan(
            lengths=held_out.lengths, settings=replace(settings, shuffle=False, epochs=1)
        )
        plans = {"train": (table, plan), "eval": (held_out, eval_plan)}
        streams = {name: PlainStream(*one, rank, world_size) for name, one in plans.items()}
        defaults = {
            "config": config,
            "tokenizer": tokenizer,
            "run_folder": Storage.open(str(folder)).folder("run"),
            "steps": plan.steps,
            "held_out": (
                HeldOutSet(
                    steps=eval_plan.steps,
                    sources=Labels(
                        names=("first", "others"), codes=np.arange(len(held_out)).clip(max=1)
                    ),
                ),
            ),
            "use_gpu": False,
            "plan_fingerprint": "plan",
            "layout": "packed",
            "startup": Startup(),
            "channel": None,
            "run_key": f"plain-{uuid.uuid5(uuid.NAMESPACE_URL, str(folder)).hex}",
            "attempt": 1,
            "skipped": frozenset(),
            "unit": "groups" if lists or rows else "pairs",
            "reference_groups": choose_reference_groups(table, tokenizer),
            "run_began": time.time(),
        }
        return cls(
            job=TrainJob(**{**defaults, **job}),
            context=PlainContext(streams),
            channel=PlainChannel() if rank == 0 else None,
            rank=rank,
            world_size=world_size,
        )

    def train(self) -> dict[str, Any]:
        """Run one attempt, as the entry point of a worker does."""
        reset_accelerator()
        job, heartbeat, channel = self.job, self.heartbeat, self.channel
        found = find_checkpoint(
            job.run_folder, job.plan_fingerprint, rank=self.rank, world_size=self.world_size
        )
        first_step = found.manifest.step if found else 0
        steps = self.context.dataset_shard("train").steps(first_step, job.steps.total)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(throughput, "SIZE_SECONDS", 0.01)  # the peak is of no interest here
            patch.setattr(throughput, "SIZES", {"cpu": (256,)})
            return train_worker(job, found, steps, heartbeat, channel, self.context)  # type: ignore[arg-type]


def reset_accelerator() -> None:
    """Let Accelerate begin anew: it keeps state for a whole process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def exported_weights(rank: PlainRank) -> dict[str, torch.Tensor]:
    """Return the weights that a finished run exported."""
    from safetensors.torch import load_file

    return load_file(Path(rank.job.run_folder.join("export")) / "model.safetensors")


@dataclass
class StopsAt:
    """Gives a rank's heartbeat a reason to stop when it enters a phase at a step."""

    phase: str
    step: int
    reason: str = "signal"

    def apply(self, rank: PlainRank) -> PlainRank:
        """Watch a rank's heartbeat."""
        enter = rank.heartbeat.enter

        def watch(phase: str, step: int) -> None:
            enter(phase, step)
            if (phase, step) == (self.phase, self.step):
                rank.heartbeat.reason_to_stop = self.reason

        rank.heartbeat.enter = watch  # type: ignore[method-assign]
        return rank


def unmeasured(records: list[Record]) -> list[tuple[Any, ...]]:
    """Return records without their times and speeds: these must repeat bit for bit."""
    return [
        (
            record.step,
            record.kind,
            record.episode,
            {k: v for k, v in record.metrics.items() if not k.startswith("perf/")},
        )
        for record in records
    ]


def stop_on_one_rank_and_resume(rank: int, world_size: int, folder: Path) -> None:
    """Train without a stop, and again with a stop that only the last rank knows of, and a resume.

    Each rank leaves what its attempts returned; rank 0 also leaves its records.
    """
    tempfile.tempdir = str(folder)
    cluster = ResolvedCluster(num_workers=world_size, cpus_per_worker=1)
    run = RunConfig(name="plain", storage_path=str(folder), seed=3, keep_pair_losses=True)
    ranks: list[PlainRank] = []
    returned = []
    for name, attempt, stops in (("quiet", 1, None), ("stopped", 1, 5), ("stopped", 2, None)):
        config = small_config(folder / name, cluster=cluster, run=run)
        one = PlainRank.make(
            folder / name, config, rank=rank, world_size=world_size, attempt=attempt
        )
        if stops and rank == world_size - 1:
            StopsAt("training", stops).apply(one)
        ranks.append(one)
        returned.append(one.train())
    found = {
        "returned": returned,
        "reported": [one.context.reported for one in ranks],
        "checks": [one.context.num_checks for one in ranks],
        "records": [unmeasured(one.channel.records) if one.channel else [] for one in ranks],
    }
    torch.save(found, folder / f"found-{rank}.pt")
