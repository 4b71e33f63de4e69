"""Training in bfloat16 weights beside float32 masters, as ZeRO does, on one device without it."""

from __future__ import annotations

import torch
from plain_engine import PlainEngine
from torch import Tensor, nn

from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.optimizer import build_optimizer


class HalfEngine(PlainEngine):
    """Weights and gradients in bfloat16; masters, their gradients and AdamW's state in float32."""

    def __init__(
        self, model: RewardModel, optimizer: OptimizerConfig, *, device: torch.device
    ) -> None:
        # The model was built in bfloat16; to cast it here would round its rotary angles too.
        super().__init__(model, optimizer, device=device, dtype=torch.float32)  # no autocast
        self._half = [p for p in model.parameters() if p.requires_grad]
        masters = nn.ParameterList(nn.Parameter(p.detach().float()) for p in self._half)
        self._masters = list(masters)
        self._optimizer = build_optimizer(masters, optimizer, fused=device.type == "cuda")

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to the masters', in float32."""
        torch.autograd.backward(loss)
        for master, half in zip(self._masters, self._half, strict=True):
            gradient = half.grad
            assert gradient is not None
            if master.grad is None:
                master.grad = gradient.float()
            else:
                master.grad.add_(gradient)
            half.grad = None

    def step(self, learning_rate: float, guard: Tensor) -> tuple[list[float], float]:
        """Clip, update the masters, round them into the weights; return both, read at once."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._limit)
        *numbers, grad_norm = torch.cat([guard, norm.detach().to(guard)[None]]).tolist()
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(self._half, self._masters)
        return numbers, grad_norm
