"""Some real forward and backward passes on this machine's device, without Ray."""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from rm_ray.batches.collate import Collator
from rm_ray.batches.loading import load_step
from rm_ray.config.train_config import ModelConfig
from rm_ray.data.cache.token_table import open_table
from rm_ray.errors import InputError
from rm_ray.model.attention import choose_kernel, head_size
from rm_ray.model.reward_model import apply_liger, build_reward_model, has_weights
from rm_ray.preflight.resolve import ResolvedRun
from rm_ray.train.loss import bradley_terry_loss
from rm_ray.train.throughput import GIGABYTE, synchronize

logger = logging.getLogger(__name__)


def measure_speed(resolved: ResolvedRun, *, num_steps: int, world_size: int, needed: int) -> float:
    """Return the pairs per second of one worker, the median of some steps after a warm-up.

    It computes what the first worker would, with random weights, which are as fast as the real
    ones and need no download; without exchanging gradients, and without the optimizer. ``needed``
    are the bytes that this takes.

    Raises:
        InputError: the model does not fit into this machine.
    """
    config = resolved.config
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_too_large(needed)
    if device.type == "cpu":
        torch.set_num_threads(config.cluster.cpus_per_worker)
    dtype = getattr(torch, config.model.dtype)
    layout = resolved.plan.settings.layout
    with tempfile.TemporaryDirectory(prefix="rm_ray-speed-") as folder:
        model = build_reward_model(
            _without_weights(config.model, resolved, Path(folder)),
            resolved.tokenizer,
            seed=config.run.seed,
            layout=layout,
        )
    on_gpu = device.type == "cuda"
    apply_liger(model, config.model.liger if on_gpu else "off", on_gpu=on_gpu)
    casts = dtype != torch.float32 and config.cluster.stage == 0
    if not casts:  # DeepSpeed casts the weights once, and leaves the rotary angles
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    model.to(device).train()
    collator = Collator(
        layout=layout,
        kernel=choose_kernel(device, dtype, head_size=head_size(model.classifier.config)),
        pad_token_id=int(resolved.tokenizer.pad_token_id),
        device=device,
    )
    table, plan = open_table(resolved.train.parts), resolved.plan
    speeds: list[float] = []
    for step in range(min(num_steps + 1, plan.steps.total)):
        loaded = load_step(table, plan, step, rank=0, world_size=world_size)
        micro_batches = collator.move(collator.lay_out(loaded))
        synchronize(device)
        started = time.perf_counter()
        for micro_batch in micro_batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=casts):
                rewards = model(micro_batch.pairs)
            chosen, rejected = rewards.chunk(2)
            losses = bradley_terry_loss(chosen, rejected, micro_batch.pairs.margins)
            torch.autograd.backward(losses.sum())
        model.zero_grad()
        synchronize(device)
        num_pairs = sum(float(ready.loaded.plan.weights.sum()) for ready in micro_batches)
        speeds.append(num_pairs / (time.perf_counter() - started))
        logger.info("measured step %d: %.1f pairs/s on one %s", step, speeds[-1], device.type)
    return statistics.median(speeds[1:] or speeds)


def _refuse_too_large(needed: int) -> None:
    """Refuse a model that would take this machine down."""
    free = psutil.virtual_memory().available
    if torch.cuda.is_available():
        free = min(free, torch.cuda.mem_get_info()[0])
    if needed > free:
        raise InputError(
            f"--measure needs {needed / GIGABYTE:.1f} GB, and this machine has "
            f"{free / GIGABYTE:.1f} GB free; measure on one of those that will train, or give "
            "--pairs_per_second"
        )


def _without_weights(config: ModelConfig, resolved: ResolvedRun, folder: Path) -> ModelConfig:
    """Return the same model from its config alone."""
    if not has_weights(config):
        return config
    path = folder / "model.json"
    resolved.classifier.config.to_json_file(str(path), use_diff=False)
    return replace(config, name_or_path=str(path))
