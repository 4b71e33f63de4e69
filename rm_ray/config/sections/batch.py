"""Settings of the batches: pairs per step, tokens per forward pass, layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rm_ray.config.checks import require

Layout = Literal["packed", "padded"]
"""Layout of a micro-batch: each distinct token once, or right-padded conversations."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How preference pairs are grouped into optimizer steps and forward passes."""

    global_batch_size: int = 64
    """Pairs per optimizer step, over all workers. It need not be divisible by anything."""

    tokens_per_micro_batch: int = 16_384
    """Maximum tokens per forward pass on one worker: distinct tokens if packed, including padding
    if padded. A larger pair gets a micro-batch of its own."""

    layout: Layout = "packed"
    """'packed': one row of distinct tokens, which computes a pair's shared prefix once and needs no
    padding; 'padded': right-padded conversations. If the model does not support packing, the run
    logs this and pads."""

    def __post_init__(self) -> None:
        size, tokens = self.global_batch_size, self.tokens_per_micro_batch
        require(size >= 1, "batch.global_batch_size", size, "at least 1")
        require(tokens >= 1, "batch.tokens_per_micro_batch", tokens, "at least 1")
