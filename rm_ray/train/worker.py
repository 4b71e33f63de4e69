"""The training function that Ray Train runs in every worker."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from transformers import PreTrainedTokenizerBase

from rm_ray.config import Layout, TrainConfig
from rm_ray.data.collate import Collator, ReadyMicroBatch, read_ahead
from rm_ray.data.plan import Steps
from rm_ray.data.stream import RankStream
from rm_ray.model.attention import choose_kernel
from rm_ray.model.export import export_model
from rm_ray.model.reward_model import apply_liger, build_reward_model, count_parameters
from rm_ray.storage import Storage
from rm_ray.tracking.history import History, Kind, Record
from rm_ray.train.board import BoardWriter
from rm_ray.train.checkpoint import RunIdentity, restore_checkpoint, save_checkpoint
from rm_ray.train.engine import Engine
from rm_ray.train.evaluate import evaluate
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.progress import Progress, describe
from rm_ray.train.startup import Startup, describe_startup
from rm_ray.train.step import NonFiniteLossError, train_step
from rm_ray.train.throughput import Throughput, measure_matrix_peak

logger = logging.getLogger(__name__)

EXPORT, SAMPLES = "export", "samples"
EVAL_SAMPLES = "eval_samples"
"""What the samples' folder is called in MLflow."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that a worker is told: settings, where the run is kept, and how long it is."""

    config: TrainConfig
    tokenizer: PreTrainedTokenizerBase
    run: Storage
    steps: Steps
    eval_steps: Steps | None
    use_gpu: bool
    plan_fingerprint: str
    layout: Layout
    startup: Startup
    board: Any


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
    board: BoardWriter | None = None
    waited: float = 0.0
    """Seconds that the step at hand waited for its data."""
    steps_here: int = 0
    """Steps taken in this attempt."""
    evaluated_at: int = -1
    clock: float = field(default_factory=time.monotonic)
    """When ``progress.seconds`` was last brought up to date."""


def train_loop_per_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank's share of every step; Ray Train calls it once per worker.

    Returns what the driver writes into ``result.json``, on rank 0.
    """
    job: TrainJob = settings["job"]
    evaluation, checkpoint = job.config.evaluation, job.config.checkpoint
    job.startup.end("workers")
    state = build_state(job)
    try:
        restore(state)
        job.startup.end("model")
        for micro_batches in train_stream(state):
            take_step(state, micro_batches)
            if is_due(evaluation.every_steps, state, at_end=evaluation.at_end):
                run_evaluation(state)
            if is_due(checkpoint.every_steps, state, at_end=True):
                save(state)
        return summarise(state, export(state))
    except NonFiniteLossError as error:
        # Every rank is here, and would be again: end the run instead of retrying.
        return {"not_finite": {"step": error.step, "pairs": list(error.pairs)}}
    finally:
        close(state)


def build_state(job: TrainJob) -> WorkerState:
    """Build the model and spread it over the ranks."""
    config = job.config
    if not job.use_gpu:
        torch.set_num_threads(config.cluster.cpus_per_worker)
    model = build_reward_model(config.model, job.tokenizer, seed=config.run.seed, layout=job.layout)
    num_parameters = count_parameters(model)  # before ZeRO shards them
    apply_liger(model, config.model.liger, on_gpu=job.use_gpu)
    dtype = getattr(torch, config.model.dtype)
    engine = Engine(model, config.optimizer, config.cluster, dtype=dtype, use_gpu=job.use_gpu)
    state = WorkerState(
        job=job,
        engine=engine,
        learning_rate=learning_rate_schedule(config.optimizer, job.steps.total),
        collator=Collator(
            layout=job.layout,
            kernel=choose_kernel(engine.device, dtype),
            pad_token_id=job.tokenizer.pad_token_id,
            device=engine.device,
        ),
        throughput=Throughput(
            num_parameters=num_parameters,
            matrix_peak=measure_matrix_peak(engine.device, dtype) * engine.world_size,
            device=engine.device,
            layout=job.layout,
        ),
    )
    if engine.rank == 0:
        state.board = BoardWriter(job.board)
        package = logging.getLogger("rm_ray")
        package.setLevel(logging.INFO)
        package.addHandler(state.board)
    return state


def restore(state: WorkerState) -> None:
    """Go on from the newest valid checkpoint of the run, if it has one."""
    job = state.job
    restored = restore_checkpoint(state.engine, job.run, job.plan_fingerprint)
    if restored is not None:
        state.progress, state.history = restored
        logger.info("resumed from the checkpoint of step %d", state.progress.step)
    if restored is not None and state.board is not None:
        state.board.record(*state.history.records)  # MLflow may have missed some
        for info in job.run.list(SAMPLES):
            if not info.base_name.endswith(".json"):
                continue  # a kill may leave a draft
            rows = job.run.read_json(f"{SAMPLES}/{info.base_name}")
            state.board.table(f"{EVAL_SAMPLES}/{info.base_name}", rows)


def train_stream(state: WorkerState) -> Iterator[list[ReadyMicroBatch]]:
    """Yield this rank's micro-batches, step by step, from where the run stands."""
    state.clock = started = time.monotonic()
    for micro_batches in ready_steps(state, "train", state.progress.step, state.job.steps):
        state.waited = time.monotonic() - started
        if state.steps_here == 0:
            state.job.startup.end("first batch")
        yield micro_batches
        started = time.monotonic()


def ready_steps(
    state: WorkerState, name: str, first_step: int, steps: Steps
) -> Iterator[list[ReadyMicroBatch]]:
    """Lay the steps of a set's stream out ahead of their turn, and move each when it is due."""
    stream: RankStream = ray.train.get_dataset_shard(name)
    laid_out = map(state.collator.lay_out, stream.steps(first_step, steps.total))
    return map(state.collator.move, read_ahead(laid_out))


def is_due(every_steps: int, state: WorkerState, *, at_end: bool) -> bool:
    """Tell whether something done every so many steps is to be done after this one."""
    step = state.progress.step
    if step == state.job.steps.total:
        return at_end
    return every_steps > 0 and step % every_steps == 0


def take_step(state: WorkerState, micro_batches: list[ReadyMicroBatch]) -> None:
    """Take one optimizer step and record what it measured."""
    progress, steps = state.progress, state.job.steps
    started = time.monotonic()
    learning_rate = state.learning_rate(progress.step)
    measured = train_step(
        state.engine,
        micro_batches,
        num_pairs=steps.size(progress.step),
        learning_rate=learning_rate,
    )
    seconds = state.waited + time.monotonic() - started
    if state.steps_here > 0:
        progress.add_timed(measured.pairs.count, measured.pairs.tokens, seconds)
    else:
        state.job.startup.end("first step")
        logger.info(describe_startup(state.job.startup.seconds))
    state.steps_here += 1
    progress.step += 1
    progress.episode += measured.pairs.count
    metrics = {
        "episode": float(progress.episode),
        "epoch": progress.episode / steps.num_pairs,
        **measured.pairs.means("train/rm"),
        "train/rm/lr": learning_rate,
        "train/rm/grad_norm": measured.grad_norm,
        **state.throughput.metrics(measured.pairs, seconds=seconds, waited=state.waited),
    }
    add_record(state, "train", metrics)
    if state.board is not None:
        state.board.status(describe(progress, steps.total, metrics))


def run_evaluation(state: WorkerState) -> None:
    """Score the held-out pairs, once at a step however often it is asked for."""
    job, step = state.job, state.progress.step
    if job.eval_steps is None or state.evaluated_at == step:
        return
    result = evaluate(
        state.engine,
        ready_steps(state, "eval", 0, job.eval_steps),
        job.tokenizer,
        sample_rows=job.config.evaluation.sample_rows,
    )
    assert result.num_pairs == job.eval_steps.num_pairs
    state.evaluated_at = step
    add_record(state, "eval", result.metrics)
    if state.engine.rank == 0 and result.samples:
        name = f"step-{step:06d}.json"
        job.run.write_json(f"{SAMPLES}/{name}", result.samples)
        if state.board is not None:
            state.board.table(f"{EVAL_SAMPLES}/{name}", result.samples)
    logger.info(
        "evaluation at step %d: accuracy %.4f, loss %.4f, margin %+.3f over %d pairs",
        step,
        result.metrics["eval/rm/accuracy"],
        result.metrics["eval/rm/loss"],
        result.metrics["eval/rm/reward_margin"],
        result.num_pairs,
    )


def add_record(state: WorkerState, kind: Kind, metrics: dict[str, float]) -> None:
    """Add metrics to the history and put them up for MLflow."""
    now = time.monotonic()
    state.progress.seconds += now - state.clock
    state.clock = now
    record = Record(
        step=state.progress.step,
        kind=kind,
        episode=state.progress.episode,
        hours=state.progress.seconds / 3600,
        metrics=metrics,
    )
    state.history.add(record)
    if state.board is not None:
        state.board.record(record)


def save(state: WorkerState) -> None:
    """Checkpoint the whole training state, with the metrics that say how good it is."""
    job = state.job
    if (job.config.checkpoint.keep_best_by or "").startswith("eval/"):
        run_evaluation(state)
    identity = RunIdentity(
        config=job.config.to_dict(),
        plan_fingerprint=job.plan_fingerprint,
        mlflow_run_id=state.board.mlflow_run_id() if state.board else None,
    )
    metrics = {**state.history.last("train"), **state.history.last("eval")}
    save_checkpoint(state.engine, state.progress, state.history, identity, metrics)


def export(state: WorkerState) -> str:
    """Write the model for every Hugging Face client into the run's folder; return its path."""
    job = state.job
    weights = state.engine.weights()
    if state.engine.rank == 0:
        with tempfile.TemporaryDirectory(prefix="rm_ray-export-") as name:
            dtype = getattr(torch, job.config.model.dtype)
            export_model(state.engine.module, weights, job.tokenizer, Path(name), dtype=dtype)
            job.run.upload(Path(name), EXPORT)
    return job.run.join(EXPORT)


def summarise(state: WorkerState, exported: str) -> dict[str, Any]:
    """Return the run's figures for ``result.json``, and its history."""
    progress, history = state.progress, state.history
    return {
        "steps": progress.step,
        "episodes": progress.episode,
        "metrics": {**history.last("train"), **history.last("eval")},
        "pairs_per_second": progress.pairs_per_second,
        "tokens_per_second": progress.tokens_per_second,
        "distinct_tokens_per_second": progress.distinct_tokens_per_second,
        "computed_over_distinct_tokens": progress.computed_over_distinct_tokens,
        "layout": state.job.layout,
        "matrix_peak_ratio": state.throughput.peak_ratio(progress.distinct_tokens_per_second),
        "startup": state.job.startup.seconds,
        "seconds": progress.seconds,
        "export": exported,
        "history": history.to_json_lines() if state.engine.rank == 0 else "",
    }


def close(state: WorkerState) -> None:
    """Put up what is left, and stop writing to the board."""
    if state.board is not None:
        logging.getLogger("rm_ray").removeHandler(state.board)
        state.board.close()
