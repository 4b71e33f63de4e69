"""Checks of disks and memory against the needs of a run."""

from __future__ import annotations

from collections.abc import Sequence

from rm_ray.preflight.checks.evaluator import check_evaluator
from rm_ray.preflight.checks.memory import (
    NOTHING_FITS,
    check_gpu_memory,
    check_machine_memory,
    options_of,
)
from rm_ray.preflight.checks.storage import Sizes, check_disk, check_staging
from rm_ray.preflight.checks.verdict import Verdict, warn_at_most
from rm_ray.preflight.estimate_inputs import count_trained
from rm_ray.preflight.machines import Machine, MachineReport
from rm_ray.preflight.resolved_run import ResolvedRun
from rm_ray.preflight.run_estimate import RunEstimate
from rm_ray.runs.checkpoint_names import list_checkpoints


def check_resources(
    resolved: ResolvedRun,
    estimate: RunEstimate,
    machines: Sequence[Machine],
    reports: Sequence[MachineReport],
    *,
    is_elsewhere: bool,
) -> list[Verdict]:
    """Check disks, memory and the evaluator; ``is_elsewhere``: another cluster will train."""
    cluster = resolved.config.cluster
    places = [
        machine.places(cpus=cluster.cpus_per_worker, use_gpu=bool(cluster.use_gpu))
        for machine in machines
    ]
    may_train = {m.name for m, place in zip(machines, places, strict=True) if place}
    staging = [report for report in reports if is_elsewhere or report.name in may_train]
    disks = _check_disks(resolved, estimate, staging)
    if is_elsewhere:
        disks = [warn_at_most(verdict) for verdict in disks]
        machines, places = [], []
    memory = _check_memory(estimate, machines, places=places, use_gpu=bool(cluster.use_gpu))
    evaluator = check_evaluator(
        resolved.config,
        machines,
        num_parameters=estimate.num_parameters,
        num_trained=count_trained(resolved),
        gpu_memory=estimate.gpu_memory,
    )
    return disks + memory + ([evaluator] if evaluator else [])


def _check_disks(
    resolved: ResolvedRun, estimate: RunEstimate, staging: Sequence[MachineReport]
) -> list[Verdict]:
    """Check disk space in the storage and on machines that may get workers."""
    sizes = sizes_of(resolved)
    disk = check_disk(
        resolved.storage,
        resolved.config.checkpoint,
        sizes,
        num_steps=estimate.num_steps,
        num_there=len(list_checkpoints(resolved.run_folder)),
    )
    return [disk, check_staging(staging, sizes)] if staging else [disk]


def sizes_of(resolved: ResolvedRun) -> Sizes:
    """Return the sizes of the run's checkpoints and export."""
    return Sizes.of(
        resolved.config,
        num_parameters=sum(p.numel() for p in resolved.classifier.parameters()),
        num_trained=count_trained(resolved),
    )


def _check_memory(
    estimate: RunEstimate,
    machines: Sequence[Machine],
    *,
    places: Sequence[int],
    use_gpu: bool,
) -> list[Verdict]:
    """Check GPU memory, if GPUs train, and host memory; empty if memory is not estimated."""
    if estimate.chosen is None:
        return []
    memory, best = estimate.chosen.memory, estimate.recommended
    verdicts = []
    if use_gpu:
        advice = NOTHING_FITS if best is None else options_of(best.setting)
        verdicts.append(check_gpu_memory(memory, estimate.gpu_memory, advice=advice))
    verdicts.append(
        check_machine_memory(memory, machines, num_workers=estimate.num_workers, places=places)
    )
    return verdicts
