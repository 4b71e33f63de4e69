"""The preflight report as text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rm_ray.estimate.gpu_memory import GIGABYTE, usable_memory
from rm_ray.estimate.moments import PARTS
from rm_ray.estimate.prediction import describe_prediction
from rm_ray.preflight.checks.memory import NOTHING_FITS, options_of
from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.checks.wording import count
from rm_ray.preflight.report.histogram import histogram
from rm_ray.preflight.run_estimate import Alternative, RunEstimate

MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}


def describe_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return one line per check, followed by its remedy if there is one."""
    lines = ["checks"]
    for verdict in verdicts:
        lines.append(f"  {MARKS[verdict.outcome]:8} {verdict.name:15} {verdict.found}")
        if verdict.remedy:
            lines.append(f"  {'':24} -> {verdict.remedy}")
    return "\n".join(lines)


def describe_estimate(estimate: RunEstimate) -> str:
    """Return the pairs, steps, memory and time of a run as text."""
    parts = [_pairs(estimate), _steps(estimate), _memory(estimate), _time(estimate)]
    if estimate.prediction is not None:
        parts.append("\n".join(describe_prediction(estimate.prediction)))
    return "\n\n".join(parts)


def _pairs(estimate: RunEstimate) -> str:
    lengths, distinct = estimate.lengths, estimate.lengths.distinct
    median, large, most = (np.quantile(distinct, share) for share in (0.5, 0.95, 1.0))
    return "\n".join(
        [
            f"{estimate.unit}: {len(lengths):,} to train on, {estimate.num_eval_pairs:,} held out, "
            f"{estimate.num_refused:,} refused",
            f"  distinct tokens per {estimate.unit[:-1]}: mean {distinct.mean():.0f}, "
            f"median {median:.0f}, 95th percentile {large:.0f}, maximum {most:.0f}; "
            f"{int(distinct.sum()):,} in total, {lengths.all.sum() / distinct.sum():.2f} times as "
            f"many in all conversations",
            *(f"  {line}" for line in histogram(distinct)),
        ]
    )


def _steps(estimate: RunEstimate) -> str:
    batch, optimizer = estimate.config.batch, estimate.config.optimizer
    lines = [
        f"steps: {estimate.num_steps:,} of up to {batch.global_batch_size} {estimate.unit}; "
        f"{estimate.num_episodes:,} episodes, {count(optimizer.epochs, 'epoch')}, on "
        f"{count(estimate.num_workers, 'worker')}"
    ]
    for i, workload in enumerate(estimate.workloads):
        sampled = "" if workload.is_exact else f" (from {workload.num_sampled} steps)"
        lines.append(
            f"  {workload.layout}: {workload.computed:,} tokens computed, "
            f"{workload.computed / workload.distinct:.2f} per distinct token{sampled}; up to "
            f"{count(workload.most_micro_batches, 'forward pass', 'es')} per step and worker, of "
            f"up to {workload.most_positions:,} tokens{'' if i else '  <- these settings'}"
        )
    return "\n".join(lines)


def _memory(estimate: RunEstimate) -> str:
    if estimate.why_no_memory:
        return f"memory: not estimated because {estimate.why_no_memory}"
    model = (
        f"{estimate.num_parameters / 1e6:,.1f} million parameters in {estimate.config.model.dtype}"
    )
    options = estimate.alternatives
    on_gpu, workers = options[0].setting.on_gpu, options[0].setting.world_size
    fewest = (
        f" for {count(workers, 'worker')}, the fewest" if workers < estimate.num_workers else ""
    )
    scale, unit = (1e9, "GB") if max(o.memory.device for o in options) > 1e9 else (1e6, "MB")
    rows = [COLUMNS, *(_row(option, scale, estimate.gpu_memory) for option in options)]
    return "\n".join(
        [
            f"memory of a {'GPU' if on_gpu else 'worker'}, estimated{fewest}: {model}; peak of "
            f"each part, peak of all parts at once, and peak host memory per worker, in {unit}",
            *(f"  {line}" for line in _align(rows)),
            *_recommendation(estimate),
        ]
    )


COLUMNS = ["stage", "recompute", "offload", *PARTS, "at once", "when", "machine", ""]


def _row(option: Alternative, scale: float, gpu_memory: int | None) -> list[str]:
    """Return the cells of a row, sizes in units of ``scale`` bytes."""
    setting, memory = option.setting, option.memory
    sizes = [*(memory.part(part) for part in PARTS), memory.device]
    return [
        str(setting.zero_stage),
        setting.recomputation,
        setting.offload,
        *(f"{size / scale:,.1f}" for size in sizes),
        memory.peak.name,
        f"{memory.machine / scale:,.1f}",
        _notes(option, gpu_memory),
    ]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows with columns aligned, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    is_number = [cell[:1].isdigit() for cell in rows[1]]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in rows
    ]


def _notes(option: Alternative, gpu_memory: int | None) -> str:
    fits = option.fits(gpu_memory)
    notes = [] if fits is None else ["fits" if fits else "too large"]
    notes += ["these settings"] * option.is_chosen + ["recommended"] * option.is_recommended
    return ", ".join(notes)


def _recommendation(estimate: RunEstimate) -> list[str]:
    if not estimate.alternatives[0].setting.on_gpu:
        return []
    if estimate.gpu_memory is None:
        return ["  the memory of a GPU is unknown; set it with --gpu_memory_gb"]
    room = (
        f"  a GPU of {estimate.gpu_memory / GIGABYTE:.0f} GB leaves "
        f"{usable_memory(estimate.gpu_memory) / GIGABYTE:.1f} GB for tensors: "
    )
    best = estimate.recommended
    if best is None:
        return [f"{room}nothing here fits; {NOTHING_FITS}"]
    return [f"{room}{options_of(best.setting)}"]


def _time(estimate: RunEstimate) -> str:
    if estimate.speed is None or estimate.hours is None:
        return "time: pass --pairs_per_second, or --measure 3 on a machine like the ones that train"
    hours, gpus = estimate.hours, estimate.hours * estimate.num_workers
    unit = "GPU-hours" if estimate.config.cluster.use_gpu else "worker-hours"
    return (
        f"time: {hours:.2f} hours at {estimate.speed.pairs_per_second:,.1f} pairs/s "
        f"({estimate.speed.source}), {gpus:,.1f} {unit}; "
        "startup, evaluation and checkpoints not included"
    )
