"""How fast a step is, against the arithmetic it takes and what the device could do."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rm_ray.batches.collate import ReadyMicroBatch
from rm_ray.config.train_config import Layout
from rm_ray.model.flops import ModelFlops
from rm_ray.train.metrics import PairMetrics

GIGABYTE = 10**9

SIZES = {"cpu": (256, 512, 1_024, 2_048), "cuda": (4_096, 8_192, 16_384)}
"""Sizes of the matrices by which the peak is measured; the largest three take 3.2 GB in float32."""

SIZE_SECONDS = 0.15
"""How long each size is tried."""

LONGEST = 0.3
"""Seconds of a product that are too many: a size whose products would take more is left out."""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a model needs for pairs, and what its devices could do together."""

    flops: ModelFlops
    matrix_peak: float
    """Measured FLOP/s of large matrix products, over all ranks."""
    device: torch.device
    layout: Layout

    def count(self, micro_batches: Sequence[ReadyMicroBatch]) -> float:
        """Return the FLOPs of forward and backward passes over the pairs that count."""
        flops = 0.0
        for micro_batch in micro_batches:
            loaded = micro_batch.loaded
            counts = loaded.plan.weights > 0
            flops += float(self.flops.training(loaded.pairs.lengths)[counts].sum())
        return flops

    def peak_ratio(self, flops_per_second: float) -> float:
        """Return the share of the devices' matrix products that is progress."""
        return flops_per_second / self.matrix_peak

    def metrics(self, measured: PairMetrics, *, seconds: float, waited: float) -> dict[str, float]:
        """Return the ``perf/`` metrics of a step; memory is this rank's."""
        tokens = measured.tokens
        needed = tokens.distinct if self.layout == "packed" else tokens.both
        flops_per_second = measured.flops / seconds
        return {
            "perf/pairs_per_second": measured.count / seconds,
            "perf/tokens_per_second": tokens.both / seconds,
            "perf/distinct_tokens_per_second": tokens.distinct / seconds,
            "perf/computed_over_distinct_tokens": tokens.computed / tokens.distinct,
            "perf/padding_share": 1 - needed / tokens.computed,
            "perf/data_wait_share": waited / seconds,
            "perf/model_flops_per_second": flops_per_second,
            "perf/matrix_peak_ratio": self.peak_ratio(flops_per_second),
            "perf/peak_memory_gb": peak_memory_bytes(self.device) / GIGABYTE,
        }


def measure_matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the most FLOP/s that square matrix products reach, in about half a second.

    Which size is the fastest depends on the device: its caches, its number of processors, its units
    for half precision, which many CPUs have not. The best product of all counts: whatever else
    keeps the device busy makes products slower, and nothing makes them faster.
    """
    best = 0.0
    for size in SIZES["cuda" if device.type == "cuda" else "cpu"]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        _seconds_of_product(left, right)  # finds memory and kernels
        started, quickest = time.perf_counter(), math.inf
        while quickest == math.inf or time.perf_counter() - started < SIZE_SECONDS:
            quickest = min(quickest, _seconds_of_product(left, right))
        best = max(best, 2 * size**3 / quickest)
        if 2**3 * quickest > LONGEST:
            break
    return best


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronize(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    synchronize(left.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak_memory(device: torch.device) -> None:
    """Count the most memory of a GPU from now on: the start may have taken more than training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory held so far: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
