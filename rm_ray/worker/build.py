"""A job's settings -> this rank's model, ready to train."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rm_ray.batches.collate import Collator
from rm_ray.errors import InputError
from rm_ray.model.attention import choose_kernel, head_size
from rm_ray.model.build import build_reward_model
from rm_ray.model.compiler import INSTALL, find_missing
from rm_ray.model.flops import ModelFlops
from rm_ray.model.liger import apply_liger
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.collectives import gather_objects
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.throughput import Throughput, forget_peak_memory, measure_matrix_peak
from rm_ray.worker.job import TrainJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The parts with which a rank computes steps and evaluations."""

    engine: Engine
    collator: Collator
    throughput: Throughput
    learning_rate: Callable[[int], float]
    """Returns the learning rate of a step, counted from 0."""


def build_compute(job: TrainJob) -> Compute:
    """Build the model and distribute it over the ranks; every rank calls it."""
    config = job.config
    _prepare_torch(job)
    liger = choose_liger(config.model.liger, on_gpu=job.use_gpu)
    dtype = getattr(torch, config.model.dtype)
    model = _build_model(job, dtype)
    flops = ModelFlops.of(model.classifier)  # before ZeRO shards it
    width = head_size(model.classifier.config)
    apply_liger(model, liger, on_gpu=job.use_gpu)
    engine = Engine(model, config.optimizer, config.cluster, dtype=dtype, use_gpu=job.use_gpu)
    if job.use_gpu and config.model.dtype == "float32" and engine.rank == 0:
        logger.warning(
            "model.dtype is float32, and TF32 is off: matrix products run at about a tenth of "
            "bfloat16's speed. Use bfloat16 unless you need the precision"
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
    engine.settle(job.reference_pairs.lay_out(collator, [0]))
    forget_peak_memory(engine.device)
    gc.collect()
    gc.freeze()  # the model lives to the end: keep later collections from visiting it
    return Compute(
        engine=engine,
        collator=collator,
        throughput=throughput,
        learning_rate=learning_rate_schedule(config.optimizer, job.steps.total),
    )


def choose_liger(choice: str, *, on_gpu: bool) -> str:
    """Return ``choice``, or 'off' on every rank if any machine cannot compile Liger's kernels.

    Every rank calls it.

    Raises:
        InputError: ``choice`` is 'on', but a machine cannot compile them.
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
        raise InputError(f"model.liger is 'on', but {lacks}{others}; {INSTALL}, or use 'auto'")
    logger.warning("liger: continuing without, since %s%s; %s", lacks, others, INSTALL)
    return "off"


def _prepare_torch(job: TrainJob) -> None:
    if job.config.run.deterministic:
        compute_deterministically()
    if not job.use_gpu:
        torch.set_num_threads(job.config.cluster.cpus_per_worker)


def _build_model(job: TrainJob, dtype: torch.dtype) -> RewardModel:
    config = job.config
    return build_reward_model(
        config.model,
        job.tokenizer,
        seed=config.run.seed,
        layout=job.layout,
        # DeepSpeed casts the weights before copying its master weights from them anyway.
        dtype=dtype if config.cluster.zero_stage > 0 else torch.float32,
    )
