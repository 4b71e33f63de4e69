"""The end of training: the exported model, and the content of ``result.json``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from rm_ray.checkpoint.content import TrainingState
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.save import Checkpointer
from rm_ray.checkpoint.staging import staging_folder
from rm_ray.model.export import export_model
from rm_ray.runs.layout import EXPORT, REFERENCE_REWARDS
from rm_ray.storage import keep_trying
from rm_ray.train.collectives import sum_counts
from rm_ray.train.engine import Engine
from rm_ray.worker.build import Compute
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.job import TrainJob
from rm_ray.worker.recorder import Recorder


def export(
    job: TrainJob, engine: Engine, recorder: Recorder, reference_rewards: dict[str, Any]
) -> str:
    """Export the model and its reference rewards to the run's folder; return the export's path.

    Every rank calls it.
    """
    weights = engine.weights()
    if engine.rank == 0:
        staging = staging_folder(job.run_key)  # the next attempt clears it if this one is killed
        staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=staging) as name:
            dtype = getattr(torch, job.config.model.dtype)
            export_model(engine.module, weights, job.tokenizer, Path(name), dtype=dtype)
            keep_trying(
                lambda: job.run_folder.upload(Path(name), EXPORT),
                what="copying the model",
                patience_s=job.config.checkpoint.storage_patience_s,
                on_wait=recorder.heartbeat.beat,
            )
        recorder.write(REFERENCE_REWARDS, reference_rewards)
    return job.run_folder.join(EXPORT)


def training_result(
    state: TrainingState,
    compute: Compute,
    clocks: Clocks,
    checkpointer: Checkpointer,
    *,
    exported: str,
) -> dict[str, Any]:
    """Return the content of ``result.json``; only rank 0 includes the history.

    Every rank calls it.
    """
    progress, history, engine = state.progress, state.history, compute.engine
    ledger = Ledger(counts=sum_counts(state.ledger.counts, engine.device))
    attempt = clocks.attempt
    return {
        "steps": progress.step,
        "episodes": progress.episode,
        "metrics": {**history.last("train"), **history.last("eval")},
        "pairs_per_second": progress.pairs_per_second,
        "tokens_per_second": progress.tokens_per_second,
        "distinct_tokens_per_second": progress.distinct_tokens_per_second,
        "computed_over_distinct_tokens": progress.computed_over_distinct_tokens,
        "layout": compute.throughput.layout,
        "matrix_peak_ratio": compute.throughput.peak_ratio(progress.flops_per_second),
        "startup": attempt["startup"],
        "seconds": progress.seconds,
        "spent": progress.spent,
        "skipped_steps": sorted(state.skipped),
        "attempt": attempt,
        "times_each_pair_was_trained_on": ledger.bounds,
        "checkpoints_not_taken": checkpointer.num_failed,
        "last_checkpoint": checkpointer.stored.last,
        "best_checkpoint": checkpointer.stored.best,
        "export": exported,
        "history": history.to_json_lines() if engine.rank == 0 else "",
    }
