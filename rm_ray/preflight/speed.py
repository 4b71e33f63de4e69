"""The speed of a run: given, or measured on this machine's device, without Ray."""

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
from rm_ray.config.sections.model import ResolvedModel
from rm_ray.data.cache.token_table import TokenTable, open_table
from rm_ray.errors import InputError
from rm_ray.estimate.activations import FLOAT32
from rm_ray.model.attention import choose_kernel, head_size
from rm_ray.model.build import build_reward_model
from rm_ray.model.liger import apply_liger
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.trainable import choose_trained
from rm_ray.objectives.build import build_objective
from rm_ray.objectives.learned_ties import build_tie_parameter
from rm_ray.preflight.estimate_inputs import count_trained
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.preflight.run_estimate import RunEstimate, Speed, flops_of_pair
from rm_ray.pretrained import base_model
from rm_ray.train.throughput import GIGABYTE, synchronize

logger = logging.getLogger(__name__)


def find_speed(
    resolved: ResolvedRun,
    estimate: RunEstimate,
    *,
    pairs_per_second: float | None,
    num_steps: int,
) -> Speed | None:
    """Return the speed of all workers, given or measured over ``num_steps``; None if neither.

    Raises:
        InputError: the model does not fit into this machine's memory.
    """
    if pairs_per_second is not None:
        return Speed(pairs_per_second=pairs_per_second, source="given")
    if not num_steps:
        return None
    workers = estimate.num_workers
    activations = 0 if estimate.chosen is None else estimate.chosen.memory.part("activations")
    one = measure_speed(
        resolved,
        open_table(resolved.train.parts),
        num_steps=num_steps,
        world_size=workers,
        needed=FLOAT32 * (estimate.num_parameters + count_trained(resolved)) + activations,
    )
    source = f"{one:.1f} on this machine's device, times {workers}, without exchange or optimizer"
    reached = None
    if torch.cuda.is_available():
        recomputes = resolved.config.model.gradient_checkpointing
        reached = one * flops_of_pair(resolved, recomputes=recomputes)
    return Speed(pairs_per_second=one * workers, source=source, flops_per_second=reached)


def measure_speed(
    resolved: ResolvedRun, table: TokenTable, *, num_steps: int, world_size: int, needed: int
) -> float:
    """Return the pairs per second of one worker: the median over steps after a warm-up step.

    It computes what rank 0 would, with random weights, which are as fast as the real ones and need
    no download, and without gradient exchange and optimizer. ``needed`` is the memory that it
    needs, in bytes.

    Raises:
        InputError: the model does not fit into this machine's memory.
    """
    config, plan = resolved.config, resolved.plan
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _refuse_too_large(needed)
    if device.type == "cpu":
        torch.set_num_threads(config.cluster.cpus_per_worker)
    dtype = getattr(torch, config.model.dtype)
    casts = dtype != torch.float32 and config.cluster.zero_stage == 0
    model = _build_model(resolved, device, None if casts else dtype)
    collator = Collator(
        layout=plan.settings.layout,
        kernel=choose_kernel(device, dtype, head_size=head_size(model.classifier.config)),
        pad_token_id=int(resolved.tokenizer.pad_token_id),
        device=device,
    )
    objective = build_objective(config.objective)
    speeds: list[float] = []
    for step in range(min(num_steps + 1, plan.steps.total)):
        loaded = load_step(table, plan, step, rank=0, world_size=world_size)
        micro_batches = collator.move(collator.lay_out(loaded))
        synchronize(device)
        started = time.perf_counter()
        for micro_batch in micro_batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=casts):
                rewards = model(micro_batch.groups)
            losses = objective(rewards, micro_batch.groups.labels)
            torch.autograd.backward(losses.groups.sum())
        model.zero_grad()
        synchronize(device)
        num_groups = sum(float(ready.loaded.plan.weights.sum()) for ready in micro_batches)
        speeds.append(num_groups / (time.perf_counter() - started))
        logger.info("measured step %d: %.1f pairs/s on one %s", step, speeds[-1], device.type)
    return statistics.median(speeds[1:] or speeds)


def _build_model(
    resolved: ResolvedRun, device: torch.device, dtype: torch.dtype | None
) -> RewardModel:
    """Return the model with random weights on a device, in ``dtype`` if DeepSpeed would cast it.

    Like DeepSpeed, this casts parameters but not the rotary embedding's buffers.
    """
    config, on_gpu = resolved.config, device.type == "cuda"
    with tempfile.TemporaryDirectory(prefix="rm_ray-speed-") as folder:
        model = build_reward_model(
            _without_weights(config.model, resolved, Path(folder)),
            resolved.tokenizer,
            seed=config.run.seed,
            layout=resolved.plan.settings.layout,
        )
    frozen = getattr(torch, config.model.dtype)
    choose_trained(model, config.model, config.lora, seed=config.run.seed, dtype=frozen)
    model.tie = build_tie_parameter(config.objective, config.optimizer)
    apply_liger(model, config.model.liger if on_gpu else "off", on_gpu=on_gpu)
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return model.to(device).train()


def _refuse_too_large(needed: int) -> None:
    """Raise an ``InputError`` if this machine has less than ``needed`` bytes free."""
    free = psutil.virtual_memory().available
    if torch.cuda.is_available():
        free = min(free, torch.cuda.mem_get_info()[0])
    if needed > free:
        raise InputError(
            f"--measure needs {needed / GIGABYTE:.1f} GB, but this machine has "
            f"{free / GIGABYTE:.1f} GB free. Measure on a machine that will train, or pass "
            "--pairs_per_second."
        )


def _without_weights(config: ResolvedModel, resolved: ResolvedRun, folder: Path) -> ResolvedModel:
    """Return settings that build the same model from its config, with random weights."""
    if not base_model(config).has_weights:
        return config
    path = folder / "model.json"
    resolved.classifier.config.to_json_file(str(path), use_diff=False)
    return replace(config, name_or_path=str(path), head="new")
