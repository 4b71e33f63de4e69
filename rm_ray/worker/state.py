"""What a worker carries from step to step: how it is built, and how it goes on."""

from __future__ import annotations

import gc
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rm_ray.batches.collate import Collator
from rm_ray.checkpoint.checkpoint import Checkpointer
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.errors import InputError
from rm_ray.model.attention import choose_kernel, head_size
from rm_ray.model.compiler import INSTALL, find_missing
from rm_ray.model.flops import ModelFlops
from rm_ray.model.reward_model import apply_liger, build_reward_model
from rm_ray.runs.history import History
from rm_ray.runs.layout import SAMPLES
from rm_ray.runs.manifest import FoundCheckpoint
from rm_ray.runs.versions import Version, Versions, choose_held, find_wanted
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.collectives import gather_objects
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.progress import Progress
from rm_ray.train.throughput import Throughput, forget_peak_memory, measure_matrix_peak
from rm_ray.worker.job import TrainJob

logger = logging.getLogger(__name__)

EVAL_SAMPLES = "eval_samples"
"""What the samples' folder is called in MLflow."""


@dataclass(kw_only=True)
class WorkerState:
    """What a worker carries from step to step."""

    job: TrainJob
    engine: Engine
    learning_rate: Callable[[int], float]
    collator: Collator
    throughput: Throughput
    progress: Progress = field(default_factory=Progress)
    history: History = field(default_factory=History)
    channel: ChannelWriter | None
    heartbeat: Heartbeat
    checkpointer: Checkpointer
    ledger: Ledger
    """Pairs that this rank trained on; on rank 0 also those before it resumed."""
    skipped: frozenset[int]
    """Steps that are left out, also if only a checkpoint still knows of them."""
    is_stopping: bool = False
    """Whether this attempt ends after the step at hand."""
    goes_on_until: float = 0.0
    """Until when room for more workers is no reason to stop."""
    asked_at: float = 0.0
    """When Ray was last asked whether machines are about to go."""
    waited: float = 0.0
    """Seconds that the step at hand waited for its data."""
    steps_here: int = 0
    """Steps taken in this attempt."""
    checkpoint_wait: float = 0.0
    """Seconds that saves of this attempt waited for the checkpoint before to be copied."""
    evaluated_at: int = -1
    clock: float = field(default_factory=time.monotonic)
    """When ``progress.seconds`` was last brought up to date."""


def build_state(job: TrainJob, heartbeat: Heartbeat, channel: ChannelWriter | None) -> WorkerState:
    """Build the model and spread it over the ranks."""
    config = job.config
    if config.run.deterministic:
        compute_deterministically()
    if not job.use_gpu:
        torch.set_num_threads(config.cluster.cpus_per_worker)
    liger = choose_liger(config.model.liger, on_gpu=job.use_gpu)
    dtype = getattr(torch, config.model.dtype)
    model = build_reward_model(
        config.model,
        job.tokenizer,
        seed=config.run.seed,
        layout=job.layout,
        # DeepSpeed casts the weights before it copies the master weights from them.
        dtype=dtype if config.cluster.stage > 0 else torch.float32,
    )
    flops = ModelFlops.of(model.classifier)  # before ZeRO shards it
    width = head_size(model.classifier.config)
    apply_liger(model, liger, on_gpu=job.use_gpu)
    engine = Engine(model, config.optimizer, config.cluster, dtype=dtype, use_gpu=job.use_gpu)
    if job.use_gpu and config.model.dtype == "float32" and engine.rank == 0:
        logger.warning(
            "model.dtype float32 on GPUs: TF32 is off, so that matrix products run at a fraction "
            "(about a tenth) of bfloat16's speed"
        )
    collator = Collator(
        layout=job.layout,
        kernel=choose_kernel(engine.device, dtype, head_size=width),
        pad_token_id=job.tokenizer.pad_token_id,
        device=engine.device,
    )
    throughput = Throughput(
        flops=flops,
        matrix_peak=measure_matrix_peak(engine.device, dtype) * engine.world_size,
        device=engine.device,
        layout=job.layout,
    )
    engine.settle(job.probes.lay_out(collator, [0]))
    forget_peak_memory(engine.device)
    gc.collect()
    gc.freeze()  # what is there stays: collections need not look at it again and again
    return WorkerState(
        job=job,
        heartbeat=heartbeat,
        channel=channel,
        engine=engine,
        ledger=Ledger.empty(job.steps.num_pairs),
        skipped=job.skipped,
        checkpointer=Checkpointer(
            run_folder=job.run_folder,
            run_key=job.run_key,
            engine=engine,
            config=config.checkpoint,
            attempt=job.attempt,
            on_wait=heartbeat.beat,
            find_held=held_checkpoints_finder(job),
        ),
        learning_rate=learning_rate_schedule(config.optimizer, job.steps.total),
        collator=collator,
        throughput=throughput,
    )


def choose_liger(choice: str, *, on_gpu: bool) -> str:
    """Return ``choice``, or that every rank goes on without Liger where any cannot compile it.

    Every rank calls it.

    Raises:
        InputError: ``choice`` is 'on'.
    """
    if choice == "off" or not on_gpu:
        return choice
    found = gather_objects((socket.gethostname(), find_missing()))
    without = {host: missing for host, missing in found if missing}
    if not without:
        return choice
    host, missing = next(iter(without.items()))
    lacks = f"Triton needs {missing} to compile Liger's kernels on {host}"
    others = f" and {len(without) - 1} more machines" if len(without) > 1 else ""
    if choice == "on":
        raise InputError(f"model.liger is 'on', but {lacks}{others}; {INSTALL}; or use 'auto'")
    logger.warning("liger: going on without, since %s%s; %s", lacks, others, INSTALL)
    return "off"


def held_checkpoints_finder(job: TrainJob) -> Callable[[Sequence[FoundCheckpoint]], set[str]]:
    """Return what names the checkpoints that are yet to be made ready for the Hub."""
    hub, best_by = job.config.hub, job.config.checkpoint.keep_best_by
    known: dict[int, Version] = {}

    def find_held(whole: Sequence[FoundCheckpoint]) -> set[str]:
        if hub.repo_id is None:
            return set()
        known.update(Versions(run_folder=job.run_folder, repo_id=hub.repo_id).read(known))
        wanted = find_wanted(whole, known, hub, best_by=best_by, last_step=job.steps.total)
        held = choose_held(wanted, job.run_folder.free_bytes())
        if len(held) < len(wanted):
            logger.warning(
                "%d checkpoints may go before they are published: %s is nearly full",
                len(wanted),
                job.run_folder.path,
            )
        return held

    return find_held


def restore(state: WorkerState, found: FoundCheckpoint | None) -> None:
    """Go on from the checkpoint that was found, if one was."""
    if found is None:
        return
    run_folder = state.job.run_folder
    restored = state.checkpointer.load(found)
    state.progress, state.history = restored.progress, restored.history
    state.skipped |= restored.skipped
    evaluated = [record.step for record in restored.history.records if record.kind == "eval"]
    state.evaluated_at = max(evaluated, default=-1)
    if state.engine.rank == 0:
        state.ledger = restored.ledger
    logger.info("resumed from the checkpoint of step %d", state.progress.step)
    if state.job.config.run.deterministic and state.engine.rank == 0:
        warn_of_other_workers(found, state.engine.world_size)
    if state.channel is None:
        return
    state.channel.record(*state.history.records)  # MLflow may have missed some
    for info in run_folder.list(SAMPLES):
        if not info.base_name.endswith(".json"):
            continue  # a kill may leave a draft
        rows = run_folder.read_json(f"{SAMPLES}/{info.base_name}")
        state.channel.table(f"{EVAL_SAMPLES}/{info.base_name}", rows)


def warn_of_other_workers(found: FoundCheckpoint, world_size: int) -> None:
    """Say that bits will differ where another number of workers wrote the checkpoint."""
    before = sum(name.startswith("slices-") for name in found.manifest.files)
    if before != world_size:
        logger.warning(
            "run.deterministic: %d workers go on from a checkpoint of %d, so that the weights will "
            "not be those of an uninterrupted run; cluster.num_workers %d keeps the number",
            world_size,
            before,
            before,
        )


def score_reference_pairs(state: WorkerState) -> dict[str, Any]:
    """Score the pairs that clients of the model are compared by."""
    return state.job.probes.score(
        state.engine,
        state.collator,
        tokens_per_pass=state.job.config.batch.tokens_per_micro_batch,
    )
