"""The preflight report as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rm_ray.estimate.moments import PARTS
from rm_ray.estimate.prediction import prediction_to_json
from rm_ray.estimate.workload import Workload
from rm_ray.preflight.checks.verdict import Verdict
from rm_ray.preflight.run_estimate import Alternative, RunEstimate


def findings_to_json(verdicts: Sequence[Verdict], estimate: RunEstimate | None) -> dict[str, Any]:
    """Return verdicts and estimate as plain values in bytes, tokens and hours."""
    document: dict[str, Any] = {"checks": [asdict(verdict) for verdict in verdicts]}
    if estimate is None:
        return document
    distinct = estimate.lengths.distinct
    counts, edges = np.histogram(distinct, bins=min(50, int(distinct.max() - distinct.min()) + 1))
    return document | {
        "config": estimate.config.to_json(),
        "pairs": len(estimate.lengths),
        "eval_pairs": estimate.num_eval_pairs,
        "refused": estimate.num_refused,
        "steps": estimate.num_steps,
        "episodes": estimate.num_episodes,
        "workers": estimate.num_workers,
        "parameters": estimate.num_parameters,
        "distinct_tokens": int(distinct.sum()),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "layouts": {workload.layout: _workload(workload) for workload in estimate.workloads},
        "gpu_memory": estimate.gpu_memory,
        "memory": [_memory(option, estimate.gpu_memory) for option in estimate.alternatives],
        "pairs_per_second": estimate.speed.pairs_per_second if estimate.speed else None,
        "prediction": prediction_to_json(estimate.prediction) if estimate.prediction else None,
        "hours": estimate.hours,
        "worker_hours": None if estimate.hours is None else estimate.hours * estimate.num_workers,
    }


def _workload(workload: Workload) -> dict[str, Any]:
    return {
        "computed": workload.computed,
        "distinct": workload.distinct,
        "most_positions": workload.most_positions,
        "most_micro_batches": workload.most_micro_batches,
        "is_exact": workload.is_exact,
    }


def _memory(option: Alternative, gpu_memory: int | None) -> dict[str, Any]:
    setting, memory = option.setting, option.memory
    return {
        "zero_stage": setting.zero_stage,
        "offload": setting.offload,
        "gradient_checkpointing": setting.checkpointing,
        "activation_offloading": setting.activation_offloading,
        "device": memory.device,
        "machine": memory.machine,
        "parts": {part: memory.part(part) for part in PARTS},
        "peak_at": memory.peak.name,
        "moments": [asdict(moment) for moment in memory.moments],
        "fits": option.fits(gpu_memory),
        "is_chosen": option.is_chosen,
        "is_recommended": option.is_recommended,
    }
