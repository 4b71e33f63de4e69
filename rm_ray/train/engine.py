"""Accelerate and DeepSpeed behind one face: the only module that knows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from safetensors.torch import load_file, save_file
from torch import Tensor

from rm_ray.config import ClusterConfig, OptimizerConfig
from rm_ray.data.packing import PackedPairs
from rm_ray.data.padding import PaddedPairs
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.optimizer import build_optimizer

_WEIGHTS, _OPTIMIZER, _ZERO = "model.safetensors", "optimizer.pt", "zero"


class Engine:
    """A reward model and its optimizer, spread over the ranks of the process group.

    A step is any number of ``micro_batch()`` contexts, each with one ``rewards`` and one
    ``backward``, and then one ``step``. Gradients are averaged over ranks, as both DDP and ZeRO do.
    """

    def __init__(
        self,
        model: RewardModel,
        optimizer: OptimizerConfig,
        cluster: ClusterConfig,
        *,
        dtype: torch.dtype,
        use_gpu: bool,
    ) -> None:
        self.zero_stage = cluster.zero_stage
        self.max_grad_norm = optimizer.max_grad_norm
        bf16 = dtype == torch.bfloat16
        if cluster.zero_stage == 0:
            precision = "bf16" if bf16 else "no"
            self.accelerator = Accelerator(cpu=not use_gpu, mixed_precision=precision)
        else:
            # Accelerator(cpu=True) would leave DeepSpeed out without a word.
            os.environ["DS_ACCELERATOR"] = "cuda" if use_gpu else "cpu"
            settings = _deepspeed_settings(cluster, optimizer, bf16=bf16)
            plugin = DeepSpeedPlugin(hf_ds_config=settings)
            self.accelerator = Accelerator(deepspeed_plugin=plugin)
        # Accelerate counts one process where DeepSpeed runs on CPUs, so the group is asked itself.
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.module = model
        self.model, self.optimizer = self.accelerator.prepare(
            model, build_optimizer(model, optimizer)
        )

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        device: torch.device = self.accelerator.device
        return device

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Compute one micro-batch; gradients are exchanged after the last one of a step."""
        if self.zero_stage > 0:
            self.model.set_gradient_accumulation_boundary(is_last)
            yield
        elif is_last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def rewards(self, pairs: PaddedPairs | PackedPairs) -> Tensor:
        """Return ``[2P]`` float32 rewards, through the root module and its hooks."""
        rewards: Tensor = self.model(pairs)
        return rewards

    def backward(self, loss: Tensor) -> None:
        """Add a scalar loss's gradients to those of this step."""
        if self.zero_stage > 0:
            self.model.backward(loss)
        else:
            self.accelerator.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights, clear the gradients; return the norm before clipping.

        Without ZeRO a gradient that is not finite leaves the weights as they are.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.zero_stage > 0:
            self.model.step()
            return float(self.model.get_global_grad_norm() or 0.0)
        limit = self.max_grad_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        if norm < float("inf"):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Score without gradients."""
        self.model.eval()
        with torch.no_grad():
            yield
        self.model.train()

    def sum_over_ranks(self, tensor: Tensor) -> None:
        """Add a tensor up over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def gather_objects(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def weights(self) -> dict[str, Tensor]:
        """Return the whole weights on the CPU of rank 0; elsewhere perhaps nothing."""
        state = self.accelerator.get_state_dict(self.model) or {}
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def save(self, folder: Path) -> None:
        """Write this rank's part of weights and optimizer state."""
        if self.zero_stage > 0:
            self.model.save_checkpoint(str(folder), tag=_ZERO, save_latest=False)
        elif self.rank == 0:
            save_file(self.module.state_dict(), folder / _WEIGHTS)
            torch.save(self.optimizer.state_dict(), folder / _OPTIMIZER)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote on all ranks."""
        if self.zero_stage > 0:
            path, _ = self.model.load_checkpoint(str(folder), tag=_ZERO)
            if path is None:
                raise FileNotFoundError(f"no ZeRO checkpoint in {folder}")
        else:
            self.module.load_state_dict(load_file(folder / _WEIGHTS))
            state = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)


def _deepspeed_settings(
    cluster: ClusterConfig, optimizer: OptimizerConfig, *, bf16: bool
) -> dict[str, Any]:
    """Accumulation is 1: the loss is scaled, and the boundary set, by the training step."""
    zero: dict[str, Any] = {"stage": cluster.zero_stage}
    if cluster.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if cluster.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if cluster.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "gradient_clipping": optimizer.max_grad_norm,
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
