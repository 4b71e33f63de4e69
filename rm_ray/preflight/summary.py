"""A short preflight before every training: counts, memory and cheap warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.moments import PARTS, MemoryEstimate
from rm_ray.estimate.workload import Workload, measure_workload
from rm_ray.preflight.checks.evaluator import check_evaluator
from rm_ray.preflight.checks.machines import check_compiler, check_gpus
from rm_ray.preflight.checks.memory import check_gpu_memory, check_machine_memory
from rm_ray.preflight.checks.resources import sizes_of
from rm_ray.preflight.checks.storage import check_disk
from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.estimate_inputs import (
    count_trained,
    count_workers,
    estimate_memory,
    why_not_estimated,
)
from rm_ray.preflight.machines import Machine, ask_gpus, list_machines
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.runs.checkpoint_names import list_checkpoints

logger = logging.getLogger(__name__)

STEPS = 16
"""Steps sampled."""

GPU_MEMORY_GB = {
    "T4": 16, "L4": 24, "A10G": 24, "L40S": 48, "H100": 80, "RTX-PRO-6000": 96, "H200": 141,
    "B200": 180,
}  # fmt: skip
"""GB of memory by Ray's GPU name, for GPUs that come in one size."""


def log_summary(resolved: ResolvedRun) -> None:
    """Log what the run computes and needs, and warn about what does not fit."""
    plan, num_workers = resolved.plan, count_workers(resolved)
    workload = measure_workload(plan, world_size=num_workers, most_steps=STEPS)
    distinct = plan.lengths.distinct
    logger.info(
        "%d steps over %s %s of %.0f distinct tokens (at most %d): %s computes %s tokens, %.2f "
        "per distinct token; up to %s in a forward pass",
        plan.steps.total,
        f"{len(distinct):,}",
        resolved.train.unit,
        distinct.mean(),
        distinct.max(),
        workload.layout,
        f"{workload.computed:,}",
        workload.computed / workload.distinct,
        f"{workload.most_positions:,}",
    )
    verdicts = [
        check_disk(
            resolved.storage,
            resolved.config.checkpoint,
            sizes_of(resolved),
            num_steps=plan.steps.total,
            num_there=len(list_checkpoints(resolved.run_folder)),
        )
    ]
    verdicts += _check_evaluator(resolved)
    verdicts += check_drivers(resolved.config.cluster, resolved.config.model)
    if why := why_not_estimated(resolved):
        logger.info("memory is not estimated: %s", why)
    else:
        verdicts += _check_memory(resolved, workload)
    for verdict in verdicts:
        if verdict.outcome != "ok":
            logger.warning("%s: %s; %s", verdict.name, verdict.found, verdict.remedy)


def _check_evaluator(resolved: ResolvedRun) -> list[Verdict]:
    """Check the evaluator's room; empty if the workers evaluate."""
    if not resolved.config.evaluates_beside:
        return []
    machines = list_machines()
    verdict = check_evaluator(
        resolved.config,
        machines,
        num_parameters=sum(p.numel() for p in resolved.classifier.parameters()),
        num_trained=count_trained(resolved),
        gpu_memory=smallest_gpu(machines),
    )
    return [verdict] if verdict else []


def check_drivers(cluster: ClusterConfig, model: ModelConfig) -> list[Verdict]:
    """Check drivers and compilers with a task on each GPU machine; empty if CPUs train."""
    if not cluster.use_gpu:
        return []
    reports = ask_gpus([machine for machine in list_machines() if machine.num_gpus])
    found = [
        check_gpus(reports, use_gpu=True, dtype=model.dtype),
        check_compiler(reports, use_gpu=True, liger=model.liger),
    ]
    return [verdict for verdict in found if verdict is not None]


def _check_memory(resolved: ResolvedRun, workload: Workload) -> list[Verdict]:
    cluster, machines = resolved.config.cluster, list_machines()
    memory = estimate_memory(resolved, workload)
    logger.info("%s", describe_memory(memory))
    verdicts = []
    if cluster.use_gpu and (gpu_memory := smallest_gpu(machines)) is not None:
        verdicts.append(check_gpu_memory(memory, gpu_memory, advice=SAVE_MEMORY))
    places = [
        m.places(cpus=cluster.cpus_per_worker, use_gpu=bool(cluster.use_gpu)) for m in machines
    ]
    workers = count_workers(resolved)
    verdicts.append(check_machine_memory(memory, machines, num_workers=workers, places=places))
    return verdicts


SAVE_MEMORY = (
    "raise cluster.zero_stage, use model.gradient_checkpointing, model.activation_offloading or "
    "cluster.offload, or lower batch.tokens_per_micro_batch; 'python jobs/preflight.py' with the "
    "same options compares them"
)


def describe_memory(memory: MemoryEstimate) -> str:
    """Return a worker's memory by part, in one line."""
    parts = ", ".join(f"{part} {memory.part(part) / GIGABYTE:.2f}" for part in PARTS)
    device = "GPU" if memory.on_gpu else "worker"
    return f"memory of a {device}, estimated: {memory.device / GIGABYTE:.2f} GB ({parts})"


def smallest_gpu(machines: Sequence[Machine]) -> int | None:
    """Return the bytes of the cluster's smallest GPU, looked up by name; None if any is unknown."""
    kinds = [GPU_MEMORY_GB.get(machine.gpu_kind or "") for machine in machines if machine.num_gpus]
    known = [size for size in kinds if size is not None]
    return min(known) * GIGABYTE if known and len(known) == len(kinds) else None
