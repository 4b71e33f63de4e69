"""The quantities that make up a worker's memory at any ZeRO stage, in elements and bytes.

Letters: N is the number of weights, n that of one worker's shard (N over the workers), b the bytes
per element of the compute weights (2 in bfloat16), B the elements of DeepSpeed's reduce bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rm_ray.estimate.activations import FLOAT32, Activations
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.train.deepspeed_config import BUCKET


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """Elements of weights and shards, and bytes of gradients, buckets and activations."""

    architecture: Architecture
    setting: MemorySetting
    activations: Activations
    """Activations of the largest forward pass."""

    @property
    def full(self) -> int:
        """N: all weights."""
        return self.architecture.num_parameters

    @property
    def shard(self) -> int:
        """n: one worker's shard, rounded up."""
        return -(-self.full // self.setting.world_size)

    @property
    def size(self) -> int:
        """b: bytes per element of the compute weights."""
        return self.setting.weight_size

    @property
    def embedding(self) -> int:
        """Elements of the embedding, whose gradient is dense and arrives last."""
        return self.architecture.parameters[0]

    @property
    def in_bucket(self) -> int:
        """Elements in a bucket once it is full or all gradients have arrived."""
        return min(BUCKET, self.full)

    @property
    def peak_activations(self) -> int:
        """Peak bytes of activations."""
        return self.activations.peak(checkpointing=self.setting.checkpointing)

    @property
    def activations_after_forward(self) -> int:
        """Bytes of activations when the forward pass ends."""
        return self.activations.held(checkpointing=self.setting.checkpointing)

    @property
    def activations_at_first_exchange(self) -> int:
        """Bytes of activations left when the bucket first fills up.

        Layer by layer, gradients arrive and activations are freed.
        """
        return math.floor(self.peak_activations * (1 - self.in_bucket / self.full))

    def new_gradient(self, size: int) -> int:
        """Return the bytes of a layer's largest gradient before it is accumulated."""
        return size * self.architecture.largest_in_layer

    def last_gradient(self, size: int) -> int:
        """Return the bytes of the gradient that fills the bucket and so triggers the exchange.

        If one bucket holds all gradients, that is the embedding's.
        """
        is_embedding = self.full <= BUCKET
        return size * (self.embedding if is_embedding else self.architecture.largest_in_layer)

    def empty_buckets(self, size: int) -> int:
        """Return the bytes of empty buckets; on a CPU, memory counts only once it is written to.

        Stages 1 and 2 fill one bucket while they exchange another.
        """
        num_buckets = 1 if self.setting.zero_stage == 3 else 2
        return num_buckets * size * BUCKET if self.setting.on_gpu else 0

    def full_bucket(self, size: int) -> int:
        """Return the bytes of the buckets when one is full."""
        return self.empty_buckets(size) if self.setting.on_gpu else size * self.in_bucket

    def adamw(self, numbers: int) -> int:
        """Return the bytes that AdamW allocates to update that many elements (torch/optim/adam.py).

        Fused AdamW, used on GPUs, allocates none; the other one allocates the square roots of the
        second moments and their quotients.
        """
        return 0 if self.setting.on_gpu else 2 * FLOAT32 * numbers
