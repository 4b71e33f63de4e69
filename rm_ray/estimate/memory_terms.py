"""The quantities that make up a worker's memory at any ZeRO stage, in elements and bytes.

Letters: N is the number of trained weights, n that of one worker's shard (N over the workers), b
the bytes per element of the compute weights (2 in bfloat16), B the elements of DeepSpeed's reduce
bucket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from rm_ray.estimate.activations import FLOAT32, Activations
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.train.deepspeed_config import BUCKET

NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Bytes per element of a matrix in 4 bits: a scale of 8 bits for 64 elements, and one of 32 bits
for 256 of those (double quantization, arXiv:2305.14314, section 3)."""


@dataclass(frozen=True, kw_only=True)
class MemoryTerms:
    """Elements of weights and shards, and bytes of gradients, buckets and activations."""

    architecture: Architecture
    setting: MemorySetting
    activations: Activations
    """Activations of the largest forward pass."""

    @cached_property
    def trained(self) -> Architecture:
        """What is trained, as if it were a model."""
        return self.architecture.of_trained()

    @property
    def full(self) -> int:
        """N: all trained weights."""
        return self.trained.num_parameters

    @property
    def frozen(self) -> int:
        """Bytes of the frozen weights that a worker holds, in the dtype of products.

        ZeRO-3 shards them too.
        """
        number, tuning = self.architecture.num_frozen, self.architecture.tuning
        if self.setting.zero_stage == 3:
            return self.size * -(-number // self.setting.world_size)
        quantized = tuning.in_matrices if tuning is not None and self.setting.is_quantized else 0
        return self.size * (number - quantized) + math.ceil(NF4 * quantized)

    @property
    def dequantized(self) -> int:
        """Bytes of the matrix in use, if matrices are held in 4 bits."""
        return self.size * self.architecture.largest_in_layer if self.setting.is_quantized else 0

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
        """Elements of the embedding, or the first trained tensor, whose gradient arrives last."""
        return self.trained.parameters[0]

    @property
    def placed(self) -> int:
        """Bytes of the largest weight while ZeRO-3 shards it.

        On a CPU, memory counts only once it is written to: a worker fills its own shard of it.
        """
        largest = max(self.architecture.parameters)
        is_filled = self.setting.on_gpu or not self.setting.from_files
        return self.size * (largest if is_filled else -(-largest // self.setting.world_size))

    @property
    def in_bucket(self) -> int:
        """Elements in a bucket once it is full or all gradients have arrived."""
        return min(BUCKET, self.full)

    @property
    def peak_activations(self) -> int:
        """Peak bytes of activations."""
        return self.activations.peak(
            checkpointing=self.setting.checkpointing,
            offloading=self.setting.activation_offloading,
        )

    @property
    def activations_after_forward(self) -> int:
        """Bytes of activations when the forward pass ends."""
        return self.activations.held(
            checkpointing=self.setting.checkpointing,
            offloading=self.setting.activation_offloading,
        )

    @property
    def activations_at_first_exchange(self) -> int:
        """Bytes of activations left when the bucket first fills up.

        Layer by layer, gradients arrive and activations are freed.
        """
        return math.floor(self.peak_activations * (1 - self.in_bucket / self.full))

    @property
    def activations_of_frozen_layer(self) -> int:
        """Bytes of temporary tensors in a layer below those that gradients pass through, if any."""
        has_one = self.activations.num_layers < self.architecture.num_layers
        return self.activations.passing if has_one else 0

    def new_gradient(self, size: int) -> int:
        """Return the bytes of a layer's largest gradient before it is accumulated."""
        return size * self.trained.largest_in_layer

    def last_gradient(self, size: int) -> int:
        """Return the bytes of the gradient that fills the bucket and so triggers the exchange.

        If one bucket holds all gradients, that is the embedding's.
        """
        is_embedding = self.full <= BUCKET
        return size * (self.embedding if is_embedding else self.trained.largest_in_layer)

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
