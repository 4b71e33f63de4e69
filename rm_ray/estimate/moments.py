"""A worker's memory at each moment of a step, in bytes, and its peak."""

from __future__ import annotations

from dataclasses import dataclass

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")
"""Parts of device memory: fields of ``Moment``."""

BEFORE_TRAINING = ("build", "start")
"""Moments before the first step: the model without its weights, then each weight being placed."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A worker's memory at one moment of a step, in bytes."""

    name: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    buffers: int = 0
    """Communication buffers of gradients and weights, and the optimizer's temporaries."""

    host: int = 0
    """Host memory, all parts together."""

    @property
    def device(self) -> int:
        """Device memory, all parts together."""
        return sum(getattr(self, part) for part in PARTS)

    def plus(self, name: str, **more: int) -> Moment:
        """Return another moment with some parts larger by the given bytes."""
        parts = (*PARTS, "host")
        return Moment(name=name, **{p: getattr(self, p) + more.get(p, 0) for p in parts})


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The estimated memory of one worker."""

    moments: tuple[Moment, ...]
    on_gpu: bool

    @property
    def peak(self) -> Moment:
        """The moment that needs the most device memory; on CPUs host memory counts too."""
        return max(self.moments, key=lambda m: m.device + (0 if self.on_gpu else m.host))

    @property
    def device(self) -> int:
        """Peak bytes of device memory."""
        return self.peak.device + (0 if self.on_gpu else self.peak.host)

    @property
    def machine(self) -> int:
        """Peak bytes of host memory."""
        return max(moment.host for moment in self.moments) if self.on_gpu else self.device

    def part(self, name: str) -> int:
        """Return the peak bytes of one part during training."""
        training = (moment for moment in self.moments if moment.name not in BEFORE_TRAINING)
        most: int = max(getattr(moment, name) for moment in training)
        return most
