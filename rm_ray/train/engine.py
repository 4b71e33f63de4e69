"""Accelerate and DeepSpeed behind one face: the only module that knows them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs
from torch import Tensor

from rm_ray.batches.packing import PackedPairs
from rm_ray.batches.padding import PaddedPairs
from rm_ray.config.train_config import ClusterConfig, OptimizerConfig
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.collectives import gather_objects
from rm_ray.train.optimizer import build_optimizer
from rm_ray.train.slices import Slice
from rm_ray.train.zero import deepspeed_settings, find_secondary_size

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A reward model and its optimizer, spread over the ranks of the process group.

    A step is any number of ``micro_batch()`` contexts, each with one ``rewards`` and one
    ``backward``, and then one ``step``. Gradients are averaged over ranks, as both DDP and ZeRO do.

    In bfloat16 without ZeRO autocast casts each matrix in every forward pass. That moves 6 bytes a
    weight, which on an H100 is below a hundredth of the arithmetic of 16,384 tokens; to keep the
    casts for a whole step would hold 2 bytes a weight through its backward passes, and recomputing
    on a GPU, in a thread of autograd's, empties autocast's cache in any case.
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
        self.zero_stage = cluster.stage
        self.max_grad_norm = optimizer.max_grad_norm
        bf16 = dtype == torch.bfloat16
        if cluster.stage == 0:
            precision = "bf16" if bf16 else "no"
            # Buckets that gradients are views of save as much memory as the gradients. The model's
            # buffers are rotary angles, the same everywhere.
            data_parallel = DistributedDataParallelKwargs(
                gradient_as_bucket_view=True, broadcast_buffers=False
            )
            self.accelerator = Accelerator(
                cpu=not use_gpu, mixed_precision=precision, kwargs_handlers=[data_parallel]
            )
        else:
            # Accelerator(cpu=True) would leave DeepSpeed out without a word.
            os.environ["DS_ACCELERATOR"] = "cuda" if use_gpu else "cpu"
            if not use_gpu:
                _leave_out_compiled_collectives()
            settings = deepspeed_settings(
                cluster,
                optimizer,
                bf16=bf16,
                on_gpu=use_gpu,
                secondary_size=_secondary_size(cluster),
            )
            plugin = DeepSpeedPlugin(hf_ds_config=settings)
            self.accelerator = Accelerator(deepspeed_plugin=plugin)
        # Accelerate counts one process where DeepSpeed runs on CPUs, so the group is asked itself.
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.module = model
        self.model, self.optimizer = self.accelerator.prepare(
            model, build_optimizer(model, optimizer, fused=use_gpu)
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

    def settle(self, pairs: PaddedPairs | PackedPairs) -> None:
        """Bring what the first steps would change into its last state; every rank calls it.

        DDP makes its buckets anew in the order in which gradients first come, and more than two
        ranks sum in an order that depends on them: without this a resumed run would differ in its
        first step. The model, of which nothing changes, is computed twice on some pairs.
        """
        if self.zero_stage > 0 or self.world_size == 1:
            return
        for _ in range(2):  # the buckets are made at the second forward pass
            self.backward(self.rewards(pairs).sum())
            self._clear_gradients()

    def step(self, learning_rate: float, numbers: Tensor) -> tuple[list[float], float]:
        """Clip, update the weights, clear the gradients.

        Returns ``numbers``, ``[N]`` float64, and the gradient's norm before clipping.
        They are read from the device once. Where the norm is not finite, weights and AdamW's state
        stay as they are.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.zero_stage > 0:
            self.model.step()  # reads the norm, and leaves the weights where it is not finite
            return numbers.tolist(), float(self.model.get_global_grad_norm() or 0.0)
        limit = self.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        *read, grad_norm = torch.cat([numbers, norm.detach().to(numbers)[None]]).tolist()
        if math.isfinite(grad_norm):
            self.optimizer.step()
        self._clear_gradients()
        return read, grad_norm

    def _clear_gradients(self) -> None:
        """Zero gradients where they are views of DDP's buckets, else let go of them."""
        is_spread = isinstance(self.model, torch.nn.parallel.DistributedDataParallel)
        self.optimizer.zero_grad(set_to_none=not is_spread)

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

    def any_rank(self, *votes: bool) -> list[bool]:
        """Tell, for each vote and on every rank alike, whether any rank says yes."""
        ballot = torch.tensor(votes, dtype=torch.float32, device=self.device)
        self.sum_over_ranks(ballot)
        return [count > 0 for count in ballot.tolist()]

    def sum_counts(self, counts: np.ndarray) -> np.ndarray:
        """Return integers added up over all ranks."""
        tensor = torch.from_numpy(counts.copy()).to(self.device)
        self.sum_over_ranks(tensor)
        summed: np.ndarray = tensor.cpu().numpy()
        return summed

    def gather_objects(self, value: T) -> list[T]:
        """Return every rank's value, by rank, on every rank."""
        return gather_objects(value)

    def weights(self) -> dict[str, Tensor]:
        """Return the whole weights on the CPU of rank 0, and nothing elsewhere."""
        if self.zero_stage == 3:
            state = self.accelerator.get_state_dict(self.model) or {}
        else:
            state = self.module.state_dict() if self.rank == 0 else {}
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def slices(self) -> list[Slice]:
        """Return what this rank holds of the float32 weights and AdamW's state, to read or fill."""
        if self.zero_stage == 0:
            return self._whole_parameters()
        return self._stage_3_slices() if self.zero_stage == 3 else self._partition_slices()

    @property
    def num_updates(self) -> int:
        """Updates that AdamW has made, which its bias correction counts."""
        states = self._adamw.state.values()
        return next((int(state["step"]) for state in states if state), 0)

    def restored(self, num_updates: int) -> None:
        """Go on from slices that were filled; every rank calls it."""
        for state in self._adamw.state.values():
            state["step"].fill_(num_updates)
        if self.zero_stage == 3:
            self._refresh_stage_3()
        elif self.zero_stage > 0:
            self.model.optimizer.update_lp_params()

    @property
    def _adamw(self) -> torch.optim.AdamW:
        """The optimizer inside Accelerate's wrapper, and inside DeepSpeed's."""
        wrapped = self.optimizer.optimizer
        adamw: torch.optim.AdamW = wrapped.optimizer if self.zero_stage > 0 else wrapped
        return adamw

    def _state(self, flat: Tensor) -> dict[str, Tensor]:
        """Return AdamW's state of a tensor, which it makes itself only in its first update."""
        state: dict[str, Tensor] = self._adamw.state[flat]
        if not state:
            device = flat.device if self._adamw.defaults["fused"] else None  # as AdamW has it
            state["step"] = torch.zeros((), device=device)
            state["exp_avg"] = torch.zeros_like(flat)
            state["exp_avg_sq"] = torch.zeros_like(flat)
        return state

    def _whole_parameters(self) -> list[Slice]:
        """Every rank holds all; each writes its share."""
        slices = []
        for i, (name, parameter) in enumerate(self._trained()):
            state = self._state(parameter)
            moments = {key: state[key].view(-1) for key in _MOMENTS}
            tensors = {"weight": parameter.detach().view(-1), **moments}
            is_written = i % self.world_size == self.rank
            slices.append(Slice(parameter=name, start=0, tensors=tensors, is_written=is_written))
        return slices

    def _partition_slices(self) -> list[Slice]:
        """ZeRO 1 and 2: parameters lie one after another, and each rank holds a stretch of them."""
        flats = [group["params"][0] for group in self._adamw.param_groups]
        slices = []
        for name, parameter in self._trained():
            fragment = parameter._hp_mapping
            if fragment is None:
                continue  # on other ranks
            where = fragment.hp_fragment_address
            part = slice(where.start, where.start + where.numel)
            start = fragment.lp_fragment_address.start
            slices.append(self._sharded(name, start, flats[fragment.param_group_index], part))
        return slices

    def _stage_3_slices(self) -> list[Slice]:
        """ZeRO 3: each rank holds a part of each parameter, padded to equal lengths."""
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
        """Bring the computing weights in line with the float32 ones, as DeepSpeed's load does."""
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
        zero.invalidate_secondary_tensor()  # made of the weights that were there before

    def _trained(self) -> list[tuple[str, Any]]:
        """Return the parameters that are trained; DeepSpeed hangs its own attributes on them."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]


def _secondary_size(cluster: ClusterConfig) -> int:
    """Return the ranks of a machine, where weights are to be sharded over them once more."""
    if not cluster.has_secondary_partition:
        return 1
    nodes = gather_objects(int(os.environ["NODE_RANK"]))
    size = find_secondary_size(nodes)
    if size == 1:
        logger.warning(
            "cluster.zero_secondary_partition has no effect: it needs several machines with "
            "equally many workers each, more than one; workers by machine: %s",
            [nodes.count(node) for node in sorted(set(nodes))],
        )
    return size


def _leave_out_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling what only its inference on CPUs uses.

    A process that is killed in the middle of it leaves a lock for which all later ones wait.
    """
    import deepspeed  # after DS_ACCELERATOR is set, which it reads

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
