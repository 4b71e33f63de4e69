"""A resolved run -> inputs of the estimates: architecture, setting and largest forward pass."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.estimate.activations import Attention, ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.families import FAMILIES, WITH_LIGER
from rm_ray.estimate.memory import estimate
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.estimate.moments import MemoryEstimate
from rm_ray.estimate.network import GPUS_PER_NODE
from rm_ray.estimate.workload import Workload
from rm_ray.model.attention import head_size, suits_flash
from rm_ray.model.flops import ModelFlops
from rm_ray.model.lean.outline import is_stored_as_is
from rm_ray.model.tuning.trainable import outline_trained
from rm_ray.preflight.resolved_run import PlannedRun, ResolvedRun
from rm_ray.pretrained import adapter_of, base_model


def count_workers(planned: PlannedRun) -> int:
    """Return the number of workers; the maximum if it is a range."""
    bounds = planned.config.cluster.worker_bounds
    return bounds[1] if bounds else 1


def why_not_estimated(resolved: ResolvedRun) -> str:
    """Return why the model's memory cannot be estimated; empty if it can."""
    family = resolved.classifier.config.get_text_config().model_type
    if family in FAMILIES:
        return ""
    return f"the memory of '{family}' models is not modelled (only {', '.join(FAMILIES)})"


def architecture_of(resolved: ResolvedRun) -> Architecture:
    """Return the sizes of the model, with an embedding for all tokens of the tokenizer."""
    return Architecture.of(_outline(resolved), vocab_size=len(resolved.tokenizer))


def flops_of(resolved: ResolvedRun) -> ModelFlops:
    """Return the FLOPs that groups need from the model, of which a part may be trained."""
    return ModelFlops.of(_outline(resolved))


def count_trained(resolved: ResolvedRun) -> int:
    """Return the number of trained parameters."""
    return sum(p.numel() for p in _outline(resolved).parameters() if p.requires_grad)


def _outline(resolved: ResolvedRun) -> PreTrainedModel:
    config = resolved.config
    return outline_trained(resolved.classifier, config.model, config.lora)


def forward_pass_of(workload: Workload, setting: MemorySetting) -> ForwardPass:
    """Return the largest forward pass of the workload."""
    return ForwardPass.of(workload.largest, layout=setting.layout, attention=setting.attention)


def memory_setting(
    resolved: ResolvedRun,
    workload: Workload,
    *,
    world_size: int | None = None,
    gpus_per_node: int = GPUS_PER_NODE,
) -> MemorySetting:
    """Return a worker's memory setting, for the run's workers or for ``world_size`` workers."""
    num_workers = world_size or count_workers(resolved)
    config, on_gpu = resolved.config, bool(resolved.config.cluster.use_gpu)
    family = resolved.classifier.config.get_text_config().model_type
    return MemorySetting(
        dtype=config.model.dtype,
        zero_stage=config.cluster.zero_stage,
        offload=config.cluster.offload,
        checkpointing=config.model.gradient_checkpointing,
        activation_offloading=config.model.activation_offloading,
        world_size=num_workers,
        on_gpu=on_gpu,
        layout=workload.layout,
        attention=_attention(resolved, workload.layout, on_gpu=on_gpu),
        liger=on_gpu and config.model.liger != "off" and family in WITH_LIGER,
        accumulates=workload.most_micro_batches > 1,
        from_files=base_model(config.model).has_weights
        and adapter_of(config.model) is None
        and is_stored_as_is(resolved.classifier),  # else rank 0 has all of it, as if drawn
        is_quantized=config.model.quantization != "none",
        secondary_size=secondary_size(config.cluster, num_workers, gpus_per_node),
    )


def secondary_size(cluster: ResolvedCluster, num_workers: int, gpus_per_node: int) -> int:
    """Return how many workers share a second partition; 0 if there is none.

    It needs several machines with a worker on every GPU.
    """
    whole, rest = divmod(num_workers, gpus_per_node)
    is_useful = whole > 1 and rest == 0 and gpus_per_node > 1
    return gpus_per_node if cluster.zero_secondary_partition and is_useful else 0


def _attention(resolved: ResolvedRun, layout: Layout, *, on_gpu: bool) -> Attention:
    """Return the attention kernel for a layout; GPUs are assumed to be Ampere or newer."""
    if layout == "padded":
        return resolved.config.model.attention
    architecture = architecture_of(resolved)
    dtype = getattr(torch, resolved.config.model.dtype)
    if not on_gpu:
        return "grouped"
    if suits_flash(dtype, head_size=head_size(resolved.classifier.config)):
        return "varlen"
    return "repeated" if architecture.key_width != architecture.query_width else "grouped"


def estimate_memory(resolved: ResolvedRun, workload: Workload) -> MemoryEstimate:
    """Return the estimated memory of a worker."""
    setting = memory_setting(resolved, workload)
    return estimate(architecture_of(resolved), forward_pass_of(workload, setting), setting)
