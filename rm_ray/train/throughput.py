"""The speed of a step, relative to the FLOPs it needs and to the device's measured peak."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.config.sections.batch import Layout
from rm_ray.model.flops import ModelFlops
from rm_ray.train.metrics import GroupMetrics

GIGABYTE = 10**9

SIZES = {"cpu": (256, 512, 1_024, 2_048), "cuda": (4_096, 8_192, 16_384)}
"""Matrix sizes for measuring the peak; the three largest matrices take 3.2 GB in float32."""

SIZE_SECONDS = 0.15
"""Seconds to measure each size for."""

MAX_PRODUCT_SECONDS = 0.3
"""Stop before a size whose products would take longer than this."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The FLOPs that a model needs for groups, and the peak of all its devices."""

    flops: ModelFlops
    matrix_peak: float
    """Measured FLOP/s of large matrix products, summed over ranks."""
    device: torch.device
    layout: Layout

    def count(self, micro_batches: Sequence[ReadyMicroBatch]) -> float:
        """Return the FLOPs of forward and backward passes over the groups with a weight."""
        flops = 0.0
        for micro_batch in micro_batches:
            loaded = micro_batch.loaded
            counts = loaded.plan.weights > 0
            flops += float(self.flops.training(loaded.columns.lengths)[counts].sum())
        return flops

    def peak_ratio(self, flops_per_second: float) -> float:
        """Return the achieved share of the devices' peak."""
        return flops_per_second / self.matrix_peak

    def metrics(self, measured: GroupMetrics, *, seconds: float, waited: float) -> dict[str, float]:
        """Return the ``perf/`` metrics of a step; memory is this rank's."""
        tokens = measured.tokens
        needed = tokens.distinct if self.layout == "packed" else tokens.all
        flops_per_second = measured.flops / seconds
        return {
            "perf/pairs_per_second": measured.count / seconds,
            "perf/tokens_per_second": tokens.all / seconds,
            "perf/distinct_tokens_per_second": tokens.distinct / seconds,
            "perf/computed_over_distinct_tokens": tokens.computed / tokens.distinct,
            "perf/padding_share": 1 - needed / tokens.computed,
            "perf/data_wait_share": waited / seconds,
            "perf/model_flops_per_second": flops_per_second,
            "perf/matrix_peak_ratio": self.peak_ratio(flops_per_second),
            "perf/peak_memory_gb": peak_memory_bytes(self.device) / GIGABYTE,
        }


def measure_matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the highest FLOP/s of square matrix products, in about half a second.

    The fastest size depends on the device: its caches, cores and half-precision units. The single
    best product counts, since other load only ever slows products down. The number of sizes depends
    on the load too, so they do not draw from the generator of the run, which checkpoints hold.
    """
    generator = torch.Generator(device).manual_seed(0)
    best = 0.0
    for size in SIZES["cuda" if device.type == "cuda" else "cpu"]:
        left, right = (
            torch.randn(size, size, device=device, dtype=dtype, generator=generator)
            for _ in range(2)
        )
        _time_product(left, right)  # warm up: allocates memory and selects kernels
        started, quickest = time.perf_counter(), math.inf
        while quickest == math.inf or time.perf_counter() - started < SIZE_SECONDS:
            quickest = min(quickest, _time_product(left, right))
        best = max(best, 2 * size**3 / quickest)
        if 2**3 * quickest > MAX_PRODUCT_SECONDS:
            break
    return best


def _time_product(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronize(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    synchronize(left.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Reset a GPU's peak memory, since the start-up may take more than training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of a GPU or, on a CPU, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
