"""What is prepared -> what the run would compute and need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from rm_ray.config.train_config import ClusterConfig, Layout
from rm_ray.data.cache.token_table import open_table
from rm_ray.estimate.activations import FAMILIES, WITH_LIGER, Attention, ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory import MemoryEstimate, MemorySetting, alternatives, estimate
from rm_ray.estimate.network import GPUS_PER_NODE, Network
from rm_ray.estimate.prediction import Prediction, predict_run
from rm_ray.estimate.timing import Compute
from rm_ray.estimate.workload import Workload, in_layout, measure_workload
from rm_ray.model.attention import head_size, suits_flash, why_not_packed
from rm_ray.model.flops import ModelFlops
from rm_ray.model.reward_model import has_weights
from rm_ray.preflight.report import Alternative, RunEstimate
from rm_ray.preflight.resolve import ResolvedRun

LAYOUTS: tuple[Layout, ...] = ("packed", "padded")


def estimate_run(
    resolved: ResolvedRun,
    *,
    least_workers: int | None,
    gpu_memory: int | None,
    most_steps: int,
    gpus_per_node: int = GPUS_PER_NODE,
) -> RunEstimate:
    """Return what a run computes in both layouts, and its memory at every stage.

    Memory is that of the fewest workers that it may go on with, if there is such a number.
    """
    num_workers = count_workers(resolved)
    mine = resolved.plan.settings.layout
    others = [layout for layout in LAYOUTS if layout != mine and _can_be(layout, resolved)]
    workloads = tuple(
        measure_workload(
            in_layout(resolved.plan, layout), world_size=num_workers, most_steps=most_steps
        )
        for layout in (mine, *others)
    )
    why = why_not_estimated(resolved)
    options: list[Alternative] = []
    if not why:
        fewest = least_workers or num_workers
        largest = measure_workload(resolved.plan, world_size=fewest, most_steps=most_steps)
        setting = memory_setting(resolved, largest, world_size=fewest, gpus_per_node=gpus_per_node)
        architecture, row = architecture_of(resolved), forward_pass_of(resolved, largest, setting)
        options = [
            Alternative(
                setting=other,
                estimated=estimate(architecture, row, other),
                is_chosen=other == setting,
            )
            for other in alternatives(setting)
        ]
    return RunEstimate(
        config=resolved.config,
        lengths=open_table(resolved.train.parts).lengths,
        num_eval_pairs=resolved.held_out.num_pairs if resolved.held_out else 0,
        num_refused=sum(row["rows"] for row in resolved.refused),
        num_steps=resolved.plan.steps.total,
        num_episodes=resolved.plan.steps.num_episodes,
        workloads=workloads,
        num_parameters=sum(p.numel() for p in resolved.classifier.parameters()),
        num_workers=num_workers,
        gpu_memory=gpu_memory,
        alternatives=tuple(recommend(options, gpu_memory)),
        why_no_memory=why,
    )


def predict_times(
    resolved: ResolvedRun, *, compute: Compute, network: Network, gpu_memory: int | None
) -> Prediction:
    """Return the time of a run at every stage and on other numbers of GPUs, predicted."""
    workload = measure_workload(resolved.plan, world_size=count_workers(resolved), most_steps=1)
    return predict_run(
        resolved.plan,
        ModelFlops.of(resolved.classifier),
        architecture_of(resolved),
        memory_setting(resolved, workload),
        compute=compute,
        network=network,
        gpu_memory=gpu_memory,
    )


def flops_of_pair(resolved: ResolvedRun) -> float:
    """Return the FLOPs that a pair needs on average, forward and backward."""
    flops = ModelFlops.of(resolved.classifier).training(resolved.plan.lengths)
    return float(flops.mean())


def recommend(options: Iterable[Alternative], gpu_memory: int | None) -> list[Alternative]:
    """Mark the first that fits: they come in the order in which they are to be preferred."""
    marked: list[Alternative] = []
    for option in options:
        is_first = not any(other.is_recommended for other in marked)
        is_best = is_first and bool(option.fits(gpu_memory))
        marked.append(replace(option, is_recommended=is_best))
    return marked


def _can_be(layout: Layout, resolved: ResolvedRun) -> bool:
    return layout == "padded" or why_not_packed(resolved.classifier.config) is None


def count_workers(resolved: ResolvedRun) -> int:
    """Return how many workers there will be."""
    bounds = resolved.config.cluster.worker_bounds
    return bounds[1] if bounds else 1


def why_not_estimated(resolved: ResolvedRun) -> str:
    """Return why the memory of a model is not known, or nothing."""
    family = resolved.classifier.config.get_text_config().model_type
    if family in FAMILIES:
        return ""
    return f"the layers of '{family}' are not known here ({', '.join(FAMILIES)} are)"


def architecture_of(resolved: ResolvedRun) -> Architecture:
    """Return the sizes of the model, with room for all tokens of its tokenizer."""
    return Architecture.of(resolved.classifier, vocab_size=len(resolved.tokenizer))


def forward_pass_of(
    resolved: ResolvedRun, workload: Workload, setting: MemorySetting
) -> ForwardPass:
    """Return the largest forward pass."""
    return ForwardPass.of(workload.largest, layout=setting.layout, attention=setting.attention)


def memory_setting(
    resolved: ResolvedRun,
    workload: Workload,
    *,
    world_size: int | None = None,
    gpus_per_node: int = GPUS_PER_NODE,
) -> MemorySetting:
    """Return what decides a worker's memory in these settings, on ``world_size`` if it is given."""
    num_workers = world_size or count_workers(resolved)
    config, on_gpu = resolved.config, bool(resolved.config.cluster.use_gpu)
    family = resolved.classifier.config.get_text_config().model_type
    return MemorySetting(
        dtype=config.model.dtype,
        zero_stage=config.cluster.stage,
        offload=config.cluster.offload,
        checkpointing=config.model.recomputes,
        world_size=num_workers,
        on_gpu=on_gpu,
        layout=workload.layout,
        attention=_attention(resolved, workload.layout, on_gpu=on_gpu),
        liger=on_gpu and config.model.liger != "off" and family in WITH_LIGER,
        accumulates=workload.most_micro_batches > 1,
        from_files=has_weights(config.model),
        secondary_over=secondary_over(config.cluster, num_workers, gpus_per_node),
    )


def secondary_over(cluster: ClusterConfig, num_workers: int, gpus_per_node: int) -> int:
    """Return how many workers share a second partition where machines are full; 0: none do."""
    whole, rest = divmod(num_workers, gpus_per_node)
    is_of_use = whole > 1 and rest == 0 and gpus_per_node > 1
    return gpus_per_node if cluster.has_secondary_partition and is_of_use else 0


def _attention(resolved: ResolvedRun, layout: Layout, *, on_gpu: bool) -> Attention:
    """Return the kernel, for GPUs from Ampere on."""
    if layout == "padded":
        return resolved.config.model.attention
    architecture = architecture_of(resolved)
    dtype = getattr(torch, resolved.config.model.dtype)
    if not on_gpu:
        return "grouped"
    if suits_flash(dtype, head_size=head_size(resolved.classifier.config)):
        return "varlen"
    return "repeated" if architecture.key_width != architecture.query_width else "grouped"


def estimate_now(resolved: ResolvedRun, workload: Workload) -> MemoryEstimate:
    """Return the memory of a worker in these settings."""
    setting = memory_setting(resolved, workload)
    return estimate(
        architecture_of(resolved), forward_pass_of(resolved, workload, setting), setting
    )
