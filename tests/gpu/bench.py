"""What every part measures on: a GPU, or a CPU that shows that the part works."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from varlen_operator import register_varlen_on_cpu

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A device, room for files, and the time that is left."""

    device: torch.device
    folder: Path
    """Its own, removed with it."""
    ends: float
    """When the part is to be over, by ``time.monotonic``, which all processes share."""
    lengths: Path | None = None
    """A file of real pairs' lengths; none where none came along."""

    @classmethod
    def open(cls, folder: Path, *, on_cpu: bool, ends: float, lengths: Path | None) -> Bench:
        """Return the bench; on a CPU a stand-in computes variable-length attention.

        Raises:
            SystemExit: a GPU is asked for and there is none.
        """
        warnings.simplefilter("ignore", FutureWarning)  # of the libraries' calls of each other
        if on_cpu:
            register_varlen_on_cpu()
        elif not torch.cuda.is_available():
            raise SystemExit("no GPU is visible to PyTorch; --dry-cpu runs all parts on a CPU")
        device = torch.device("cpu" if on_cpu else "cuda")
        return cls(device=device, folder=folder, ends=ends, lengths=lengths)

    @property
    def is_dry(self) -> bool:
        """Whether this only shows that the part works; its figures say nothing."""
        return self.device.type == "cpu"

    def pick(self, real: T, dry: T) -> T:
        """Return a size for a GPU, or the small one that stands for it."""
        return dry if self.is_dry else real

    def some(self, values: Sequence[T], count: int = 1) -> Sequence[T]:
        """Return all values on a GPU, the first ones else."""
        return values[:count] if self.is_dry else values

    @property
    def left(self) -> float:
        """Seconds until the part is to be over."""
        return self.ends - time.monotonic()

    @property
    def liger_runs(self) -> bool:
        """Whether Liger's kernels run here: they are Triton's."""
        return not self.is_dry

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked to."""
        if not self.is_dry:
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        """Measure the most memory anew, and give the device back what no tensor needs."""
        if not self.is_dry:
            torch.cuda.empty_cache()
        self.reset_peak()

    def reset_peak(self) -> None:
        """Measure the most memory anew; the allocator keeps what it has."""
        if not self.is_dry:
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak_gb(self) -> float:
        """Most memory of tensors since, in GB; nothing on a CPU."""
        return 0.0 if self.is_dry else torch.cuda.max_memory_allocated() / 1e9
