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
from rm_ray.model.tuning.lora import without_adapters
from rm_ray.model.tuning.trainable import choose_trained, loads_in_dtype, outline_trained
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.learned_ties import build_tie_parameter
from rm_ray.objectives.losses import Objective
from rm_ray.train.collectives import gather_objects
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.engine import Engine
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.placement import refuse_other_files
from rm_ray.train.throughput import Throughput, forget_peak_memory, measure_matrix_peak
from rm_ray.worker.job import TrainJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Compute:
    """The parts with which a rank computes steps and evaluations."""

    engine: Engine
    collator: Collator
    throughput: Throughput
    objective: Objective
    learning_rate: Callable[[int], float]
    """Returns the learning rate of a step, counted from 0."""


def build_compute(job: TrainJob) -> Compute:
    """Build the model and distribute it over the ranks; every rank calls it."""
    config = job.config
    prepare_torch(job)
    liger = choose_liger(config.model.liger, on_gpu=job.use_gpu)
    dtype = getattr(torch, config.model.dtype)
    model = build_model(job, dtype)
    flops = _count_flops(job, model)  # before ZeRO shards it
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
    engine.settle(job.reference_groups.lay_out(collator, [0]))
    forget_peak_memory(engine.device)
    gc.collect()
    gc.freeze()  # the model lives to the end: keep later collections from visiting it
    return Compute(
        engine=engine,
        collator=collator,
        throughput=throughput,
        objective=build_objective(config.objective),
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


def _count_flops(job: TrainJob, model: RewardModel) -> ModelFlops:
    """Return the FLOPs that groups need; quantized weights do not have the shapes of matrices."""
    config = job.config
    if config.trains_all:
        return ModelFlops.of(model.classifier)
    bare = without_adapters(model.classifier)
    return ModelFlops.of(outline_trained(bare, config.model, config.lora))


def prepare_torch(job: TrainJob) -> None:
    """Set determinism and the number of threads in this process."""
    if job.config.run.deterministic:
        compute_deterministically()
    if not job.use_gpu:
        torch.set_num_threads(job.config.cluster.cpus_per_worker)


def build_model(job: TrainJob, dtype: torch.dtype) -> RewardModel:
    """Build the model on the CPU, without the values that the engine reads in parts."""
    config = job.config
    # DeepSpeed casts the weights before copying its master weights from them anyway.
    is_cast = config.cluster.zero_stage > 0 or loads_in_dtype(config.model, config.lora)
    is_full = config.model.quantization == "none"
    model = build_reward_model(
        config.model,
        job.tokenizer,
        seed=config.run.seed,
        layout=job.layout,
        dtype=dtype if is_cast else torch.float32,
        lean=True,
        shared=is_full,  # 4-bit weights are made on every rank
    )
    if not is_full:
        refuse_other_files(model)
    choose_trained(model, config.model, config.lora, seed=config.run.seed, dtype=dtype)
    model.tie = build_tie_parameter(config.objective, config.optimizer)
    return model
