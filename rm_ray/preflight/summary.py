"""A preflight in a few lines, before every training: what is known already, and cheap warnings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rm_ray.config.train_config import TrainConfig
from rm_ray.estimate.gpu_memory import GIGABYTE
from rm_ray.estimate.memory import PARTS, MemoryEstimate
from rm_ray.estimate.workload import Workload, measure_workload
from rm_ray.preflight.checks import (
    Verdict,
    check_compiler,
    check_disk,
    check_gpu_memory,
    check_gpus,
    check_machine_memory,
)
from rm_ray.preflight.machines import Machine, ask_gpus, list_machines
from rm_ray.preflight.resolve import ResolvedRun
from rm_ray.preflight.run_estimate import count_workers, estimate_now, why_not_estimated
from rm_ray.runs.attempts import list_checkpoints

logger = logging.getLogger(__name__)

STEPS = 16
"""How many steps are looked at."""

GPU_MEMORY_GB = {
    "T4": 16, "L4": 24, "A10G": 24, "L40S": 48, "H100": 80, "RTX-PRO-6000": 96, "H200": 141,
    "B200": 180,
}  # fmt: skip
"""What GPUs have by Ray's names for them, where there is one size of a name."""


def log_summary(resolved: ResolvedRun) -> None:
    """Log what the run computes and needs, and warn of what will not fit."""
    plan, num_workers = resolved.plan, count_workers(resolved)
    workload = measure_workload(plan, world_size=num_workers, most_steps=STEPS)
    distinct = plan.lengths.distinct
    logger.info(
        "%d steps over %s pairs of %.0f distinct tokens (%d at most): %s computes %s tokens, %.2f "
        "for each distinct one; up to %s in a forward pass",
        plan.steps.total,
        f"{len(distinct):,}",
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
            num_parameters=sum(p.numel() for p in resolved.classifier.parameters()),
            num_steps=plan.steps.total,
            num_there=len(list_checkpoints(resolved.run_folder)),
        )
    ]
    verdicts += _judge_gpus(resolved.config)
    if why := why_not_estimated(resolved):
        logger.info("memory is not estimated, since %s", why)
    else:
        verdicts += _judge_memory(resolved, workload)
    for verdict in verdicts:
        if verdict.outcome != "ok":
            logger.warning("%s: %s; %s", verdict.name, verdict.found, verdict.remedy)


def _judge_gpus(config: TrainConfig) -> list[Verdict]:
    """Judge drivers and compilers by a task on each machine with GPUs; nothing where none train."""
    if not config.cluster.use_gpu:
        return []
    reports = ask_gpus([machine for machine in list_machines() if machine.num_gpus])
    found = [
        check_gpus(reports, use_gpu=True, dtype=config.model.dtype),
        check_compiler(reports, use_gpu=True, liger=config.model.liger),
    ]
    return [verdict for verdict in found if verdict is not None]


def _judge_memory(resolved: ResolvedRun, workload: Workload) -> list[Verdict]:
    cluster, machines = resolved.config.cluster, list_machines()
    estimated = estimate_now(resolved, workload)
    logger.info("%s", describe_memory(estimated))
    verdicts = []
    if cluster.use_gpu and (gpu_memory := smallest_gpu(machines)) is not None:
        verdicts.append(check_gpu_memory(estimated, gpu_memory, advice=ADVICE))
    places = [
        m.places(cpus=cluster.cpus_per_worker, use_gpu=bool(cluster.use_gpu)) for m in machines
    ]
    workers = count_workers(resolved)
    verdicts.append(check_machine_memory(estimated, machines, num_workers=workers, places=places))
    return verdicts


ADVICE = (
    "a higher cluster.zero_stage, model.gradient_checkpointing, cluster.offload or a lower "
    "batch.tokens_per_micro_batch takes less; 'python jobs/preflight.py' with the same options "
    "compares them"
)


def describe_memory(estimated: MemoryEstimate) -> str:
    """Return a worker's memory in one line, by part."""
    parts = ", ".join(f"{part} {estimated.part(part) / GIGABYTE:.2f}" for part in PARTS)
    device = "GPU" if estimated.on_gpu else "worker"
    return f"memory of a {device}, estimated: {estimated.device / GIGABYTE:.2f} GB ({parts})"


def smallest_gpu(machines: Sequence[Machine]) -> int | None:
    """Return the bytes of the smallest GPU of the cluster, by its name; none where not known."""
    kinds = [GPU_MEMORY_GB.get(machine.gpu_kind or "") for machine in machines if machine.num_gpus]
    known = [size for size in kinds if size is not None]
    return min(known) * GIGABYTE if known and len(known) == len(kinds) else None
