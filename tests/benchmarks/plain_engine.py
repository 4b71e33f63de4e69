"""What a training step asks of an engine, on one device and without Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rm_ray.batches.packing import PackedGroups
from rm_ray.batches.padding import PaddedGroups
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.optimizer import build_optimizer


class PlainEngine:
    """One model on one device: float32 weights, and autocast where the arithmetic is bfloat16."""

    world_size = 1

    def __init__(
        self,
        model: RewardModel,
        optimizer: OptimizerConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.device, self._dtype = device, dtype
        self._limit = optimizer.max_grad_norm or float("inf")
        self._model = model.to(device).train()
        self._optimizer = build_optimizer(self._model, optimizer, fused=device.type == "cuda")

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Compute one micro-batch; there are no other ranks to exchange gradients with."""
        yield

    def outputs(self, groups: PaddedGroups | PackedGroups) -> Tensor:
        """Return ``[R]`` float32 rewards."""
        half = self._dtype != torch.float32
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            rewards: Tensor = self._model(groups)
        return rewards

    def backward(self, loss: Tensor) -> None:
        """Add a scalar loss's gradients to those of this step."""
        torch.autograd.backward(loss)

    def step(self, learning_rate: float, guard: Tensor) -> tuple[list[float], float]:
        """Clip, update the weights, clear the gradients; return both, read at once."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._limit)
        *numbers, grad_norm = torch.cat([guard, norm.detach().to(guard)[None]]).tolist()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return numbers, grad_norm
