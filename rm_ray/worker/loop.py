"""A worker's loop over the steps, with evaluation and checkpoints, and the export at its end."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.batches.loading import LoadedMicroBatch
from rm_ray.batches.stream import RankStream
from rm_ray.checkpoint.checkpoint import RunIdentity, TrainingState
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.staging import staging_folder
from rm_ray.evaluation.held_out import evaluate_held_out
from rm_ray.evaluation.pairwise import pairwise_report
from rm_ray.model.export import export_model
from rm_ray.runs.history import Record, RecordKind
from rm_ray.runs.layout import EVALUATIONS, EXPORT, PROBES, SAMPLES
from rm_ray.runs.manifest import FoundCheckpoint
from rm_ray.runs.startup import describe_startup
from rm_ray.storage import keep_trying
from rm_ray.tracking.channel import ChannelWriter
from rm_ray.tracking.heartbeat import Heartbeat
from rm_ray.train.progress import progress_line
from rm_ray.train.step import NonFiniteLossError, train_step
from rm_ray.worker.feed import ready_steps
from rm_ray.worker.job import TrainJob
from rm_ray.worker.state import (
    EVAL_SAMPLES,
    WorkerState,
    build_state,
    restore,
    score_reference_pairs,
)
from rm_ray.worker.stopping import (
    decides_to_stop,
    gives_up_evaluation,
    is_to_ask,
    stop,
    wants_to_stop,
)

logger = logging.getLogger(__name__)


def train_worker(
    job: TrainJob,
    found: FoundCheckpoint | None,
    steps: Iterable[list[LoadedMicroBatch]],
    heartbeat: Heartbeat,
    channel: ChannelWriter | None,
) -> dict[str, Any]:
    """Train on the steps that are left, evaluate, checkpoint, export; return what came of it.

    Rank 0 has the ``board``.
    """
    state = build_state(job, heartbeat, channel)
    try:
        restore(state, found)
        heartbeat.first_step = state.progress.step
        job.startup.end("model")
        state.clock = time.monotonic()
        evaluate_late(state)
        if state.is_stopping and (stopped := stop(state)):
            return stopped
        for micro_batches in train_stream(state, steps):
            if state.progress.step in state.skipped:
                skip_step(state)
            else:
                take_step(state, micro_batches)
            if is_evaluation_due(state):
                run_evaluation(state)
            if state.is_stopping or is_due(job.config.checkpoint.every_steps, state, at_end=True):
                save(state)
            if state.is_stopping and (stopped := stop(state)):
                return stopped
        return worker_result(state, export(state))
    except NonFiniteLossError as error:
        # Every rank is here, and would be again: end the run instead of retrying.
        state.checkpointer.finish()
        return {"not_finite": {"step": error.step, "pairs": list(error.pairs)}}


def train_stream(
    state: WorkerState, steps: Iterable[list[LoadedMicroBatch]]
) -> Iterator[list[ReadyMicroBatch]]:
    """Yield this rank's micro-batches, step by step, and note how long each was waited for."""
    started = time.monotonic()
    for micro_batches in ready_steps(
        steps, state.collator, state.heartbeat, "training", lambda: state.progress.step + 1
    ):
        state.waited = time.monotonic() - started
        if state.steps_here == 0:
            state.job.startup.end("first batch")
        yield micro_batches
        started = time.monotonic()


def is_due(every_steps: int, state: WorkerState, *, at_end: bool) -> bool:
    """Tell whether something done every so many steps is to be done after this one."""
    step = state.progress.step
    if step == state.job.steps.total:
        return at_end
    return every_steps > 0 and step % every_steps == 0


def is_evaluation_due(state: WorkerState) -> bool:
    """Tell whether held-out pairs are to be scored at this step, and there is time for it."""
    config = state.job.config
    if state.is_stopping and state.progress.step < state.job.steps.total:
        return False  # the next attempt does it
    ranks = (config.checkpoint.keep_best_by or "").startswith("eval/")
    return is_due(config.evaluation.every_steps, state, at_end=config.evaluation.at_end) or (
        ranks and is_due(config.checkpoint.every_steps, state, at_end=True)
    )


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
        flops=state.throughput.count(micro_batches),
        votes=(wants_to_stop(state), is_to_ask(state)),
        on_micro_batch=state.heartbeat.beat,
    )
    state.is_stopping = decides_to_stop(state, *measured.votes)
    for micro_batch in micro_batches:
        plan = micro_batch.loaded.plan
        state.ledger.add(plan.pairs[plan.weights > 0])
    seconds = state.waited + time.monotonic() - started
    if state.steps_here > 0:
        pairs = measured.pairs
        progress.add_timed(pairs.count, pairs.tokens, pairs.flops, seconds)
    else:
        state.job.startup.end("first step")
        state.heartbeat.startup = state.job.startup.seconds
        logger.info(describe_startup(state.heartbeat.startup))
    state.steps_here += 1
    progress.step += 1
    progress.episode += measured.pairs.count
    spend(state, "data wait", state.waited)
    spend(state, "steps", seconds - state.waited)
    metrics = {
        "episode": float(progress.episode),
        "epoch": progress.episode / steps.num_pairs,
        **measured.pairs.means("train/rm"),
        "train/rm/lr": learning_rate,
        "train/rm/grad_norm": measured.grad_norm,
        **state.throughput.metrics(measured.pairs, seconds=seconds, waited=state.waited),
        "perf/goodput": progress.spent["steps"] / (time.time() - state.job.run_began),
        "perf/checkpoint_seconds": progress.spent.get("checkpoints", 0.0),
        "perf/checkpoint_wait_seconds": state.checkpoint_wait,
        "perf/steps_since_checkpoint": progress.step - state.checkpointer.last_step,
    }
    add_record(state, "train", metrics)
    if state.channel is not None:
        state.channel.status(progress_line(progress, steps.total, metrics))


def skip_step(state: WorkerState) -> None:
    """Leave a step out, whose loss is not finite."""
    state.progress.step += 1
    logger.warning("step %d is left out: its loss is not finite", state.progress.step)


def spend(state: WorkerState, what: str, seconds: float) -> None:
    """Count seconds for what they went into, in the run and in this attempt."""
    state.progress.spend(what, seconds)
    state.heartbeat.spent = {
        **state.heartbeat.spent,
        what: state.heartbeat.spent.get(what, 0.0) + seconds,
    }


def run_evaluation(state: WorkerState) -> None:
    """Score the held-out pairs, once at a step however often it is asked for."""
    job, step = state.job, state.progress.step
    if job.eval_steps is None or state.evaluated_at == step:
        return
    started = time.monotonic()
    state.heartbeat.enter("waiting", step)  # for every other rank to ask for its shard too
    stream: RankStream = ray.train.get_dataset_shard("eval")
    result = evaluate_held_out(
        state.engine,
        ready_steps(
            stream.steps(0, job.eval_steps.total),
            state.collator,
            state.heartbeat,
            "evaluating",
            lambda: step,
        ),
        job.tokenizer,
        sample_rows=job.config.evaluation.sample_rows,
        on_micro_batch=state.heartbeat.beat,
        gives_up=lambda: gives_up_evaluation(state),
    )
    spend(state, "evaluation", time.monotonic() - started)
    if result is None:
        state.is_stopping = True
        return
    assert result.num_pairs == job.eval_steps.num_pairs
    state.evaluated_at = step
    add_record(state, "eval", result.metrics)
    if state.engine.rank == 0 and result.samples:
        name = f"step-{step:06d}.json"
        write(state, f"{SAMPLES}/{name}", result.samples)
        if state.channel is not None:
            state.channel.table(f"{EVAL_SAMPLES}/{name}", result.samples)
    if state.engine.rank == 0 and job.eval_labels is not None:
        report = pairwise_report(result.pairs, job.eval_labels.of(result.order), [])
        write(state, f"{EVALUATIONS}/step-{step:08d}.json", {"step": step, **report})
    logger.info(
        "evaluation at step %d: accuracy %.4f, loss %.4f, margin %+.3f over %d pairs",
        step,
        result.metrics["eval/rm/accuracy"],
        result.metrics["eval/rm/loss"],
        result.metrics["eval/rm/reward_margin"],
        result.num_pairs,
    )


def evaluate_late(state: WorkerState) -> None:
    """Do the evaluation that the attempt before was stopped in, and checkpoint what it measured."""
    step = state.progress.step
    if step == 0 or state.evaluated_at == step or not is_evaluation_due(state):
        return
    run_evaluation(state)
    if not state.is_stopping and is_due(
        state.job.config.checkpoint.every_steps, state, at_end=True
    ):
        save(state)


def write(state: WorkerState, name: str, value: Any) -> None:
    """Write JSON to the run's folder, which may fail for a while."""
    keep_trying(
        lambda: state.job.run_folder.write_json(name, value),
        what=f"writing {name}",
        patience_s=state.job.config.checkpoint.storage_patience_s,
        on_wait=state.heartbeat.beat,
    )


def add_record(state: WorkerState, kind: RecordKind, metrics: dict[str, float]) -> None:
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
    if state.channel is not None:
        state.channel.record(record)


def save(state: WorkerState) -> None:
    """Checkpoint the whole training state, with the metrics that say how good it is."""
    job = state.job
    started = time.monotonic()
    state.heartbeat.enter("saving", state.progress.step)
    identity = RunIdentity(
        config=job.config.to_dict(),
        plan_fingerprint=job.plan_fingerprint,
        mlflow_run_id=state.channel.mlflow_run_id() if state.channel else None,
    )
    training = TrainingState(
        progress=state.progress,
        history=state.history,
        ledger=state.ledger,
        skipped=state.skipped,
        probes=score_reference_pairs(state),
    )
    is_measured = state.evaluated_at == state.progress.step
    metrics = {
        **state.history.last("train"),
        **(state.history.last("eval") if is_measured else {}),
    }
    state.checkpoint_wait += state.checkpointer.save(training, identity, metrics)
    spend(state, "checkpoints", time.monotonic() - started)


def export(state: WorkerState) -> str:
    """Write the model for every Hugging Face client into the run's folder; return its path."""
    job = state.job
    state.heartbeat.enter("exporting", state.progress.step)
    started = time.monotonic()
    state.checkpointer.finish()
    spend(state, "checkpoints", time.monotonic() - started)
    probes = score_reference_pairs(state)
    weights = state.engine.weights()
    if state.engine.rank == 0:
        staging = staging_folder(job.run_key)  # which the next attempt clears, if need be
        staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=staging) as name:
            dtype = getattr(torch, job.config.model.dtype)
            export_model(state.engine.module, weights, job.tokenizer, Path(name), dtype=dtype)
            keep_trying(
                lambda: job.run_folder.upload(Path(name), EXPORT),
                what="copying the model",
                patience_s=job.config.checkpoint.storage_patience_s,
                on_wait=state.heartbeat.beat,
            )
        write(state, PROBES, probes)
    return job.run_folder.join(EXPORT)


def worker_result(state: WorkerState, exported: str) -> dict[str, Any]:
    """Return the run's figures for ``result.json``, and its history."""
    progress, history = state.progress, state.history
    ledger = Ledger(counts=state.engine.sum_counts(state.ledger.counts))
    return {
        "steps": progress.step,
        "episodes": progress.episode,
        "metrics": {**history.last("train"), **history.last("eval")},
        "pairs_per_second": progress.pairs_per_second,
        "tokens_per_second": progress.tokens_per_second,
        "distinct_tokens_per_second": progress.distinct_tokens_per_second,
        "computed_over_distinct_tokens": progress.computed_over_distinct_tokens,
        "layout": state.job.layout,
        "matrix_peak_ratio": state.throughput.peak_ratio(progress.flops_per_second),
        "startup": state.heartbeat.startup,
        "seconds": progress.seconds,
        "spent": progress.spent,
        "skipped_steps": sorted(state.skipped),
        "attempt": {
            "first_step": state.heartbeat.first_step,
            "startup": state.heartbeat.startup,
            "spent": state.heartbeat.spent,
        },
        "times_each_pair_was_trained_on": ledger.bounds,
        "checkpoints_not_taken": state.checkpointer.num_failed,
        "last_checkpoint": state.checkpointer.last,
        "best_checkpoint": state.checkpointer.best,
        "export": exported,
        "history": history.to_json_lines() if state.engine.rank == 0 else "",
    }
