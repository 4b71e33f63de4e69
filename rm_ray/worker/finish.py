"""The end of training: the exported model, and the content of ``result.json``."""

from __future__ import annotations

import functools
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rm_ray.checkpoint.content import TrainingState
from rm_ray.checkpoint.ledger import Ledger
from rm_ray.checkpoint.save import Checkpointer
from rm_ray.checkpoint.staging import staging_folder
from rm_ray.model.export import PREFIX, export_model
from rm_ray.model.tuning.adapter_folder import write_adapter
from rm_ray.runs.layout import ADAPTER, EXPORT, REFERENCE_REWARDS
from rm_ray.storage import keep_trying
from rm_ray.train.collectives import merge_disjoint, sum_counts
from rm_ray.train.engine import Engine
from rm_ray.worker.build import Compute
from rm_ray.worker.clocks import Clocks
from rm_ray.worker.job import TrainJob
from rm_ray.worker.recorder import Recorder


def export(
    job: TrainJob, engine: Engine, recorder: Recorder, reference_rewards: dict[str, Any]
) -> str:
    """Export the model and its reference rewards to the run's folder; return the export's path.

    With LoRA, ``lora.export`` decides what is exported; the path is that of the merged model, or
    of the adapter if there is nothing else. Every rank calls it.
    """
    lora = job.config.lora
    exports = [(EXPORT, _write_merged)] * lora.writes_merged
    exports += [(ADAPTER, _write_adapter)] * lora.writes_adapter
    for name, write in exports:
        weights = engine.stream_weights()
        if engine.rank == 0:
            _upload(job, recorder, name, functools.partial(write, job, engine, weights))
        else:
            deque(weights, maxlen=0)  # rank 0 gathers each from all ranks
    if engine.rank == 0:
        recorder.write(REFERENCE_REWARDS, reference_rewards)
    return job.run_folder.join(EXPORT if lora.writes_merged else ADAPTER)


Weights = Iterable[tuple[str, Tensor]]
"""Weights by name, one after another."""


def _upload(job: TrainJob, recorder: Recorder, name: str, write: Callable[[Path], None]) -> None:
    """Write a folder on this machine, and copy it to the run's folder under ``name``."""
    staging = staging_folder(job.run_key)  # the next attempt clears it if this one is killed
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=staging) as folder:
        write(Path(folder))

        def replace() -> None:
            if job.run_folder.exists(name):  # an attempt killed here may have left other files
                job.run_folder.delete(name)
            job.run_folder.upload(Path(folder), name)

        keep_trying(
            replace,
            what="copying the model",
            patience_s=job.config.checkpoint.storage_patience_s,
            on_wait=recorder.heartbeat.beat,
        )


def _write_merged(job: TrainJob, engine: Engine, weights: Weights, folder: Path) -> None:
    config = job.config.model
    export_model(
        engine.module,
        weights,
        job.tokenizer,
        folder,
        dtype=getattr(torch, config.dtype),
        max_shard_size=config.shard_bytes,
    )


def _write_adapter(job: TrainJob, engine: Engine, weights: Weights, folder: Path) -> None:
    config = job.config
    write_adapter(
        engine.module.classifier,
        ((name.removeprefix(PREFIX), tensor) for name, tensor in weights),
        job.tokenizer,
        folder,
        lora=config.lora,
        config=config.model,
        dtype=getattr(torch, config.model.dtype),
    )


def training_result(
    state: TrainingState,
    compute: Compute,
    clocks: Clocks,
    checkpointer: Checkpointer,
    *,
    exported: str,
) -> dict[str, Any]:
    """Return the content of ``result.json``; only rank 0 includes the history.

    Losses that are kept go with the history. Every rank calls it.
    """
    progress, history, engine = state.progress, state.history, compute.engine
    ledger = Ledger(counts=sum_counts(state.ledger.counts, engine.device))
    attempt = clocks.attempt
    losses = state.losses and merge_disjoint(state.losses.values, engine.device)
    return {
        "steps": progress.step,
        "episodes": progress.episode,
        "metrics": {**history.last("train"), **history.last("eval")},
        "pairs_per_second": progress.pairs_per_second,
        "tokens_per_second": progress.tokens_per_second,
        "distinct_tokens_per_second": progress.distinct_tokens_per_second,
        "computed_over_distinct_tokens": progress.computed_over_distinct_tokens,
        "head": engine.module.kept_head or "new",
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
        **({} if losses is None else {"pair_losses": losses if engine.rank == 0 else None}),
    }
