"""Where a step's time on the device goes, from PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "attention": ("flash", "fmha", "attn", "scaled_dot"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "aten::mm", "aten::addmm"),
    "optimizer": ("multi_tensor_apply", "adam", "foreach"),
    "gathering keys": ("index", "gather", "scatter"),
    "casts and copies": ("copy", "memcpy", "convert"),
    "norms, rotations, gates": ("rms_norm", "rmsnorm", "rope", "swiglu", "silu", "reduce_kernel"),
}
"""Words in kernels' names, the first kind that has one of them."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's run on the device, in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All kernels of some steps."""

    kernels: Sequence[Kernel]

    @property
    def busy(self) -> float:
        """Microseconds in which a kernel ran, each counted once."""
        total, until = 0.0, float("-inf")
        for kernel in sorted(self.kernels, key=lambda kernel: kernel.start):
            total += max(0.0, kernel.end - max(until, kernel.start))
            until = max(until, kernel.end)
        return total

    @property
    def idle_share(self) -> float:
        """Share of the time between the first kernel and the last in which none ran."""
        span = max(k.end for k in self.kernels) - min(k.start for k in self.kernels)
        return 1 - self.busy / span

    def shares(self) -> dict[str, float]:
        """Return the share of each kind of kernel in the time of all."""
        times = dict.fromkeys([*KINDS, "other"], 0.0)
        for kernel in self.kernels:
            times[kind_of(kernel.name)] += kernel.end - kernel.start
        return {kind: time / sum(times.values()) for kind, time in times.items()}

    def longest(self, count: int) -> list[tuple[str, int, float]]:
        """Return the names with the most time: name, runs, share of the time of all."""
        times: dict[str, list[float]] = {}
        for kernel in self.kernels:
            times.setdefault(kernel.name, []).append(kernel.end - kernel.start)
        everything = sum(map(sum, times.values()))
        order = sorted(times, key=lambda name: -sum(times[name]))
        return [(name, len(times[name]), sum(times[name]) / everything) for name in order[:count]]


def kind_of(name: str) -> str:
    """Return the kind of a kernel."""
    lower = name.lower()
    return next((k for k, words in KINDS.items() if any(w in lower for w in words)), "other")


def record(compute: Callable[[], object], device: torch.device) -> Trace:
    """Return the kernels of a computation; on a CPU its operators that call no others."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        compute()
        if on_gpu:
            torch.cuda.synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return Trace(
        kernels=[
            Kernel(event.name, event.time_range.start, event.time_range.end)
            for event in profiler.events() or []
            if event.device_type == kind
            and not event.cpu_children
            and not event.is_user_annotation  # a range that holds kernels, and none itself
        ]
    )
