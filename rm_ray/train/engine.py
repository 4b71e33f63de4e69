"""One interface to Accelerate and DeepSpeed, which no other module uses."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs
from torch import Tensor

from rm_ray.batches.packing import PackedGroups
from rm_ray.batches.padding import PaddedGroups
from rm_ray.config.sections.cluster import ResolvedCluster
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.importing import hidden
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.collectives import gather_objects
from rm_ray.train.deepspeed_config import deepspeed_settings, find_secondary_size
from rm_ray.train.optimizer import build_optimizer
from rm_ray.train.placement import place_sharded, place_whole, stream_whole
from rm_ray.train.slices import Slice

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A reward model and its optimizer, distributed over the ranks of the process group.

    A step is any number of ``micro_batch()`` contexts, each with one ``rewards`` and one
    ``backward``, followed by one ``step``. Both DDP and ZeRO average gradients over ranks.

    In bfloat16 without ZeRO, autocast casts each matrix in every forward pass. That moves 6 bytes
    per weight: on an H100, under 1% of the time that 16,384 tokens take. Caching the casts for a
    whole step would hold 2 bytes per weight through the backward passes, and activation
    recomputation, which runs in an autograd thread, clears autocast's cache anyway.
    """

    def __init__(
        self,
        model: RewardModel,
        optimizer: OptimizerConfig,
        cluster: ResolvedCluster,
        *,
        dtype: torch.dtype,
        use_gpu: bool,
    ) -> None:
        self.zero_stage = cluster.zero_stage
        self.max_grad_norm = optimizer.max_grad_norm
        bf16 = dtype == torch.bfloat16
        settings: dict[str, Any] = {}
        if cluster.zero_stage == 0:
            precision = "bf16" if bf16 else "no"
            # Gradients that are views of DDP's buckets save a copy of the gradients. The model's
            # buffers are rotary angles, identical on every rank.
            data_parallel = DistributedDataParallelKwargs(
                gradient_as_bucket_view=True, broadcast_buffers=False
            )
            self.accelerator = Accelerator(
                cpu=not use_gpu, mixed_precision=precision, kwargs_handlers=[data_parallel]
            )
        else:
            # Accelerator(cpu=True) would silently ignore DeepSpeed.
            os.environ["DS_ACCELERATOR"] = "cuda" if use_gpu else "cpu"
            if not use_gpu:
                _disable_compiled_collectives()
            settings = deepspeed_settings(
                cluster,
                optimizer,
                bf16=bf16,
                on_gpu=use_gpu,
                secondary_size=_secondary_size(cluster),
            )
            plugin = DeepSpeedPlugin(hf_ds_config=settings)
            self.accelerator = Accelerator(deepspeed_plugin=plugin)
        # Accelerate counts one process if DeepSpeed runs on CPUs, so read the group itself.
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.module = model
        if model.sources is not None:
            self._place(model, settings, dtype=dtype)
        self.model, self.optimizer = self.accelerator.prepare(
            model, build_optimizer(model, optimizer, fused=use_gpu)
        )

    def _place(self, model: RewardModel, settings: dict[str, Any], *, dtype: torch.dtype) -> None:
        """Give a lean model its values, in the memory that trains with them."""
        if self.zero_stage < 3:
            # DeepSpeed computes in one dtype; without it, frozen weights are in that of products.
            own = None if self.zero_stage == 0 else dtype
            place_whole(model, self.device, dtype=own, rank=self.rank)
            return
        place_sharded(model, self.device, import_deepspeed(), settings, dtype=dtype)

    @property
    def device(self) -> torch.device:
        """The device that batches must be on."""
        device: torch.device = self.accelerator.device
        return device

    @contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Compute one micro-batch; ranks exchange gradients in the last one of a step."""
        if self.zero_stage > 0:
            self.model.set_gradient_accumulation_boundary(is_last)
            yield
        elif is_last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def rewards(self, groups: PaddedGroups | PackedGroups) -> Tensor:
        """Return ``[R]`` float32 rewards."""
        return self.outputs(groups)[: len(groups.last_positions)]

    def outputs(self, groups: PaddedGroups | PackedGroups) -> Tensor:
        """Return the rewards and what the objective learns with them (see ``RewardModel``).

        They come through the root module and its hooks.
        """
        outputs: Tensor = self.model(groups)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to this step's gradients."""
        if self.zero_stage > 0:
            self.model.backward(loss)
        else:
            self.accelerator.backward(loss)

    def settle(self, groups: PaddedGroups | PackedGroups) -> None:
        """Bring DDP's buckets into their final state before the first step; every rank calls it.

        DDP rebuilds its buckets in the order in which gradients first arrive, and with more than
        two ranks the order of summation depends on them: otherwise, a resumed run would differ in
        its first step. Computes some groups twice; weights do not change.
        """
        if self.zero_stage > 0 or self.world_size == 1:
            return
        for _ in range(2):  # DDP rebuilds buckets in the second forward pass
            self.backward(self.outputs(groups).sum())
            self._clear_gradients()

    def step(self, learning_rate: float, numbers: Tensor) -> tuple[list[float], float]:
        """Clip the gradients, update the weights, and clear the gradients.

        Returns ``numbers``, ``[N]`` float64, and the gradient norm before clipping, with a single
        read from the device. If the norm is not finite, weights and AdamW's state do not change.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.zero_stage > 0:
            self.model.step()  # reads the norm; keeps the weights if it is not finite
            return numbers.tolist(), float(self.model.get_global_grad_norm() or 0.0)
        limit = self.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        *read, grad_norm = torch.cat([numbers, norm.detach().to(numbers)[None]]).tolist()
        if math.isfinite(grad_norm):
            self.optimizer.step()
        self._clear_gradients()
        return read, grad_norm

    def _clear_gradients(self) -> None:
        """Zero gradients that are views of DDP's buckets, and free any others."""
        are_views = isinstance(self.model, torch.nn.parallel.DistributedDataParallel)
        self.optimizer.zero_grad(set_to_none=not are_views)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch to evaluation mode, without gradients."""
        self.model.eval()
        with torch.no_grad():
            yield
        self.model.train()

    def weights(self) -> dict[str, Tensor]:
        """Return the full weights on the CPU on rank 0, and nothing on other ranks."""
        return dict(self.stream_weights())

    def stream_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each full weight on the CPU on rank 0, and nothing on other ranks.

        Every rank iterates to the end: ZeRO-3 gathers one weight at a time.
        """
        gather = import_deepspeed().zero.GatheredParameters if self.zero_stage == 3 else None
        return stream_whole(self.module, gather, rank=self.rank)

    def slices(self) -> list[Slice]:
        """Return this rank's float32 weights and AdamW state as slices, to read or to fill."""
        if self.zero_stage == 0:
            return self._whole_parameters()
        return self._stage_3_slices() if self.zero_stage == 3 else self._partition_slices()

    @property
    def num_updates(self) -> int:
        """The number of AdamW's updates, which its bias correction uses."""
        states = self._adamw.state.values()
        return next((int(state["step"]) for state in states if state), 0)

    def resume(self, num_updates: int) -> None:
        """Update the rest of the engine from filled slices; every rank calls it.

        ``num_updates`` is the number of AdamW's updates so far.
        """
        for state in self._adamw.state.values():
            state["step"].fill_(num_updates)
        if self.zero_stage == 3:
            self._refresh_stage_3()
        elif self.zero_stage > 0:
            self.model.optimizer.update_lp_params()

    @property
    def _adamw(self) -> torch.optim.AdamW:
        """The optimizer inside Accelerate's wrapper and, with ZeRO, DeepSpeed's."""
        wrapped = self.optimizer.optimizer
        adamw: torch.optim.AdamW = wrapped.optimizer if self.zero_stage > 0 else wrapped
        return adamw

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        """Return AdamW's state of a tensor; create it if AdamW has not made its first update."""
        state: dict[str, Tensor] = self._adamw.state[flat]
        if not state:
            device = flat.device if self._adamw.defaults["fused"] else None  # like AdamW itself
            state["step"] = torch.zeros((), device=device)
            state["exp_avg"] = torch.zeros_like(flat)
            state["exp_avg_sq"] = torch.zeros_like(flat)
        return state

    def _whole_parameters(self) -> list[Slice]:
        """Return every parameter: each rank holds all of them and writes its share."""
        slices = []
        for i, (name, parameter) in enumerate(self._trained()):
            state = self._state(parameter)
            moments = {key: state[key].view(-1) for key in _MOMENTS}
            tensors = {"weight": parameter.detach().view(-1), **moments}
            is_written = i % self.world_size == self.rank
            slices.append(Slice(parameter=name, start=0, tensors=tensors, is_written=is_written))
        return slices

    def _partition_slices(self) -> list[Slice]:
        """Return the slices under ZeRO 1 and 2: a range of the concatenated parameters per rank."""
        flats = [group["params"][0] for group in self._adamw.param_groups]
        slices = []
        for name, parameter in self._trained():
            fragment = parameter._hp_mapping
            if fragment is None:
                continue  # held by other ranks
            where = fragment.hp_fragment_address
            part = slice(where.start, where.start + where.numel)
            start = fragment.lp_fragment_address.start
            slices.append(self._sharded(name, start, flats[fragment.param_group_index], part))
        return slices

    def _stage_3_slices(self) -> list[Slice]:
        """Return the slices under ZeRO 3: a part of each parameter, padded to equal lengths."""
        names = {id(parameter): name for name, parameter in self._trained()}
        zero = self.model.optimizer
        slices = []
        for group, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for parameter in group:
                length = parameter.partition_numel()
                start = self.rank * length
                held = min(length, parameter.ds_numel - start)  # the rest is padding
                if held > 0:
                    part = slice(offset, offset + held)
                    slices.append(self._sharded(names[id(parameter)], start, flat, part))
                offset += length
        return slices

    def _sharded(self, name: str, start: int, flat: Tensor, part: slice) -> Slice:
        state = self._state(flat)
        tensors = {"weight": flat.detach()[part], **{key: state[key][part] for key in _MOMENTS}}
        return Slice(parameter=name, start=start, tensors=tensors, is_written=True)

    def _refresh_stage_3(self) -> None:
        """Copy the float32 weights to the computing ones, like DeepSpeed's own loading."""
        zero = self.model.optimizer
        for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
            computing = zero.fp16_partitioned_groups_flat[i]
            computing.data.copy_(flat.data)
            partitions = zero.fp16_partitioned_groups[i]
            updated = zero.unflatten(computing, partitions)
            for partition, values in zip(partitions, updated, strict=True):
                partition.data = values.data
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        zero.invalidate_secondary_tensor()  # holds the previous weights

    def _trained(self) -> list[tuple[str, Any]]:
        """Return the trained parameters by name; ``Any``, since DeepSpeed adds attributes."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]


def _secondary_size(cluster: ResolvedCluster) -> int:
    """Return the ranks per machine if weights are also sharded within machines, otherwise 1."""
    if not cluster.zero_secondary_partition:
        return 1
    nodes = gather_objects(int(os.environ["NODE_RANK"]))
    size = find_secondary_size(nodes)
    if size == 1:
        logger.warning(
            "cluster.zero_secondary_partition has no effect: it needs several machines with the "
            "same number of workers, at least two; workers per machine: %s",
            [nodes.count(node) for node in sorted(set(nodes))],
        )
    return size


def _disable_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling collectives that only its CPU inference uses.

    A process killed during compilation leaves a lock that blocks all later ones.
    """
    import_deepspeed().ops.__compatible_ops__["deepspeed_shm_comm"] = False


def import_deepspeed() -> Any:
    """Import DeepSpeed, late, because importing it reads DS_ACCELERATOR.

    Its autotuner would import MLflow, which takes a second and which no worker uses.
    """
    with hidden("mlflow"):
        return importlib.import_module("deepspeed")
