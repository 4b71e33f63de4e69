"""How fast a step is, against the arithmetic it takes and what the device could do."""

from __future__ import annotations

import resource
import statistics
import time
from dataclasses import dataclass

import torch

from rm_ray.config import Layout
from rm_ray.train.metrics import PairMetrics

GIGABYTE = 10**9


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a model costs per token, and what its devices could do together."""

    num_parameters: int
    """Of the model without embeddings: each costs 6 FLOPs a token (arXiv:2001.08361, p. 7)."""
    matrix_peak: float
    """Measured FLOP/s of large matrix products, over all ranks."""
    device: torch.device
    layout: Layout

    def peak_ratio(self, distinct_tokens_per_second: float) -> float:
        """Return the share of the devices' matrix products that the model's arithmetic takes."""
        return 6 * self.num_parameters * distinct_tokens_per_second / self.matrix_peak

    def metrics(self, measured: PairMetrics, *, seconds: float, waited: float) -> dict[str, float]:
        """Return the ``perf/`` metrics of a step; memory is this rank's."""
        tokens = measured.tokens
        needed = tokens.distinct if self.layout == "packed" else tokens.both
        speed = tokens.distinct / seconds
        return {
            "perf/pairs_per_second": measured.count / seconds,
            "perf/tokens_per_second": tokens.both / seconds,
            "perf/distinct_tokens_per_second": speed,
            "perf/computed_over_distinct_tokens": tokens.computed / tokens.distinct,
            "perf/padding_share": 1 - needed / tokens.computed,
            "perf/data_wait_share": waited / seconds,
            "perf/model_flops_per_second": 6 * self.num_parameters * speed,
            "perf/matrix_peak_ratio": self.peak_ratio(speed),
            "perf/peak_memory_gb": peak_memory_bytes(self.device) / GIGABYTE,
        }


def measure_matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of square matrix products, the median of some; takes about 0.2 s."""
    size = 8_192 if device.type == "cuda" else 1_024
    if device.type == "cpu" and dtype != torch.float32:
        size = 256  # many CPUs have no units for half precision, and take 100 times as long
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[2:])


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
