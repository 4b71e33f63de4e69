"""What a preflight found, as people read it, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rm_ray.config.train_config import TrainConfig
from rm_ray.data.cache.pair_tokens import PairLengths
from rm_ray.estimate.gpu_memory import GIGABYTE, usable
from rm_ray.estimate.memory import PARTS, MemoryEstimate, MemorySetting
from rm_ray.estimate.prediction import Prediction, describe_prediction, prediction_to_json
from rm_ray.estimate.workload import Workload
from rm_ray.preflight.checks import Verdict, count

MARKS = {"ok": "ok", "warning": "WARNING", "failed": "FAILED"}

BAR = 40
"""Width of the longest bar of a histogram."""


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """One way to train, and what it would take."""

    setting: MemorySetting
    estimated: MemoryEstimate
    is_chosen: bool
    """Whether it is what the settings ask for."""
    is_recommended: bool = False

    def fits(self, gpu_memory: int | None) -> bool | None:
        """Tell whether a worker fits into a GPU; none where that is not known."""
        return None if gpu_memory is None else self.estimated.device <= usable(gpu_memory)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast all workers are together, and how that is known."""

    pairs_per_second: float
    source: str
    flops_per_second: float | None = None
    """What one GPU reached in forward and backward passes, where that was measured."""


@dataclass(frozen=True, kw_only=True)
class RunEstimate:
    """What a run would compute and need."""

    config: TrainConfig
    lengths: PairLengths
    num_eval_pairs: int
    num_refused: int
    num_steps: int
    num_episodes: int
    workloads: tuple[Workload, ...]
    """In the layout of the run first."""
    num_parameters: int
    num_workers: int
    gpu_memory: int | None
    alternatives: tuple[Alternative, ...]
    why_no_memory: str = ""
    """Why memory is not estimated, if so."""
    speed: Speed | None = None
    prediction: Prediction | None = None
    """What the run would take, where the network between GPUs is known."""

    @property
    def hours(self) -> float | None:
        """Hours of steps; start, evaluation and checkpoints come on top."""
        if self.speed is None:
            return None
        return self.num_episodes / self.speed.pairs_per_second / 3600


def describe_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return a line for each check, and below it what to do."""
    lines = ["checks"]
    for verdict in verdicts:
        lines.append(f"  {MARKS[verdict.outcome]:8} {verdict.name:15} {verdict.found}")
        if verdict.remedy:
            lines.append(f"  {'':24} -> {verdict.remedy}")
    return "\n".join(lines)


def describe_plan(planned: RunEstimate) -> str:
    """Return pairs, steps, memory and time."""
    parts = [_pairs(planned), _steps(planned), _memory(planned), _time(planned)]
    if planned.prediction is not None:
        parts.append("\n".join(describe_prediction(planned.prediction)))
    return "\n\n".join(parts)


def _pairs(planned: RunEstimate) -> str:
    lengths, distinct = planned.lengths, planned.lengths.distinct
    both = lengths.chosen.astype(np.int64) + lengths.rejected
    middle, large, most = (np.quantile(distinct, share) for share in (0.5, 0.95, 1.0))
    return "\n".join(
        [
            f"pairs: {len(lengths):,} to train on, {planned.num_eval_pairs:,} held out, "
            f"{planned.num_refused:,} refused",
            f"  distinct tokens of a pair: {distinct.mean():.0f} on average, {middle:.0f} in the "
            f"middle, {large:.0f} at 95%, {most:.0f} at most; {int(distinct.sum()):,} in all, "
            f"{both.sum() / distinct.sum():.2f} times as many in both conversations",
            *(f"  {line}" for line in histogram(distinct)),
        ]
    )


def histogram(values: np.ndarray, *, most_rows: int = 10) -> list[str]:
    """Return rows of a text histogram, in ranges of equal width."""
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // most_rows))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(values, bins=edges)
    digits, most = len(f"{edges[-1]:,}"), counts.max()
    return [
        f"{edge:>{digits},} to {edge + width - 1:>{digits},}  {count:>{len(f'{most:,}')},}  "
        f"{'#' * round(BAR * count / most)}".rstrip()
        for edge, count in zip(edges[:-1].tolist(), counts.tolist(), strict=True)
    ]


def _steps(planned: RunEstimate) -> str:
    batch, optimizer = planned.config.batch, planned.config.optimizer
    lines = [
        f"steps: {planned.num_steps:,} of up to {batch.global_batch_size} pairs; "
        f"{planned.num_episodes:,} episodes, {count(optimizer.epochs, 'epoch')}, on "
        f"{count(planned.num_workers, 'worker')}"
    ]
    for i, workload in enumerate(planned.workloads):
        sampled = "" if workload.is_exact else f" (by {workload.num_sampled} steps)"
        lines.append(
            f"  {workload.layout}: {workload.computed:,} tokens computed, "
            f"{workload.computed / workload.distinct:.2f} for each distinct one{sampled}; up to "
            f"{count(workload.most_micro_batches, 'forward pass', 'es')} a step on a worker, of up "
            f"to {workload.most_positions:,} tokens{'' if i else '  <- these settings'}"
        )
    return "\n".join(lines)


def _memory(planned: RunEstimate) -> str:
    model = (
        f"{planned.num_parameters / 1e6:,.1f} million parameters in {planned.config.model.dtype}"
    )
    if planned.why_no_memory:
        return f"memory: not estimated, since {planned.why_no_memory}"
    options = planned.alternatives
    on_gpu, workers = options[0].setting.on_gpu, options[0].setting.world_size
    fewest = f" for {workers}, the fewest" if workers < planned.num_workers else ""
    scale, unit = (1e9, "GB") if max(o.estimated.device for o in options) > 1e9 else (1e6, "MB")
    rows = [["stage", "recompute", "offload", *PARTS, "at once", "when", "machine", ""]]
    for option in options:
        setting, estimated = option.setting, option.estimated
        sizes = [*(estimated.part(part) for part in PARTS), estimated.device]
        rows.append(
            [
                str(setting.zero_stage),
                "yes" if setting.checkpointing else "no",
                setting.offload,
                *(f"{size / scale:,.1f}" for size in sizes),
                estimated.peak.name,
                f"{estimated.machine / scale:,.1f}",
                _notes(option, planned.gpu_memory),
            ]
        )
    return "\n".join(
        [
            f"memory of a {'GPU' if on_gpu else 'worker'}, estimated{fewest}: {model}; the most of "
            "each part, the most at once, and the most of the machine's own for a worker, in "
            f"{unit}",
            *(f"  {line}" for line in _align(rows)),
            *_recommendation(planned),
        ]
    )


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows whose columns are as wide as their widest cell, numbers to the right."""
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


def _recommendation(planned: RunEstimate) -> list[str]:
    if not planned.alternatives[0].setting.on_gpu:
        return []
    if planned.gpu_memory is None:
        return ["  what a GPU has is not known; say it with --gpu_memory_gb"]
    best = next((option for option in planned.alternatives if option.is_recommended), None)
    room = (
        f"  a GPU of {planned.gpu_memory / GIGABYTE:.0f} GB leaves "
        f"{usable(planned.gpu_memory) / GIGABYTE:.1f} GB for tensors: "
    )
    if best is None:
        return [f"{room}nothing here fits; {ADVICE}"]
    return [f"{room}{describe_setting(best.setting)}"]


ADVICE = "use more workers, or lower batch.tokens_per_micro_batch or data.max_length"


def describe_setting(setting: MemorySetting) -> str:
    """Return the options that lead to a setting."""
    return (
        f"--cluster.zero_stage {setting.zero_stage} --cluster.offload {setting.offload} "
        f"--model.gradient_checkpointing {setting.checkpointing}"
    )


def _time(planned: RunEstimate) -> str:
    if planned.speed is None or planned.hours is None:
        return "time: give --pairs_per_second, or --measure 3 on a machine like those that train"
    hours, gpus = planned.hours, planned.hours * planned.num_workers
    unit = "GPU-hours" if planned.config.cluster.use_gpu else "worker-hours"
    return (
        f"time: {hours:.2f} hours at {planned.speed.pairs_per_second:,.1f} pairs/s "
        f"({planned.speed.source}), {gpus:,.1f} {unit}; start, evaluation and checkpoints on top"
    )


def preflight_to_json(verdicts: Sequence[Verdict], planned: RunEstimate | None) -> dict[str, Any]:
    """Return all of it as plain values; bytes, tokens and hours."""
    document: dict[str, Any] = {"checks": [asdict(verdict) for verdict in verdicts]}
    if planned is None:
        return document
    distinct = planned.lengths.distinct
    counts, edges = np.histogram(distinct, bins=min(50, int(distinct.max() - distinct.min()) + 1))
    return document | {
        "config": planned.config.to_json(),
        "pairs": len(planned.lengths),
        "eval_pairs": planned.num_eval_pairs,
        "refused": planned.num_refused,
        "steps": planned.num_steps,
        "episodes": planned.num_episodes,
        "workers": planned.num_workers,
        "parameters": planned.num_parameters,
        "distinct_tokens": int(distinct.sum()),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "layouts": {
            workload.layout: {
                "computed": workload.computed,
                "distinct": workload.distinct,
                "most_positions": workload.most_positions,
                "most_micro_batches": workload.most_micro_batches,
                "is_exact": workload.is_exact,
            }
            for workload in planned.workloads
        },
        "gpu_memory": planned.gpu_memory,
        "memory": [
            {
                "zero_stage": option.setting.zero_stage,
                "offload": option.setting.offload,
                "gradient_checkpointing": option.setting.checkpointing,
                "device": option.estimated.device,
                "machine": option.estimated.machine,
                "parts": {part: option.estimated.part(part) for part in PARTS},
                "peak_at": option.estimated.peak.name,
                "moments": [asdict(moment) for moment in option.estimated.moments],
                "fits": option.fits(planned.gpu_memory),
                "is_chosen": option.is_chosen,
                "is_recommended": option.is_recommended,
            }
            for option in planned.alternatives
        ],
        "pairs_per_second": planned.speed.pairs_per_second if planned.speed else None,
        "prediction": prediction_to_json(planned.prediction) if planned.prediction else None,
        "hours": planned.hours,
        "worker_hours": None if planned.hours is None else planned.hours * planned.num_workers,
    }
