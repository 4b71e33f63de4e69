"""A model's values, one tensor at a time: into the memory that trains with them, and out of it.

Rank 0 reads whole tensors from the model's files; DDP and DeepSpeed's stages 1 and 2 send every
parameter from rank 0 to the others before training anyway. Under ZeRO-3 each rank reads its own
part of every tensor.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rm_ray.errors import InputError
from rm_ray.model.reward_model import RewardModel
from rm_ray.train.collectives import gather_objects

Place = Callable[[nn.Parameter], nn.Parameter]

MOST_AT_ONCE = 2**26
"""Elements of a file read at once."""

NUM_SAMPLES, SAMPLE = 64, 4096
"""Blocks of a weight file that ranks compare, and the bytes of a block."""


def place_whole(
    model: RewardModel, device: torch.device, *, dtype: torch.dtype | None, rank: int
) -> None:
    """Give every parameter its memory on ``device``, and its values on rank 0.

    On the other ranks, those on ``meta`` have none until rank 0 sends them. Without a ``dtype``,
    each parameter keeps its own.
    """

    def place(old: nn.Parameter) -> nn.Parameter:
        kind = old.dtype if dtype is None else dtype
        if not old.is_meta:
            is_there = old.device == device and old.dtype == kind
            return old if is_there else _like(old, old.detach().to(device, kind))
        values = torch.empty(old.shape, device=device, dtype=kind)
        if rank == 0:
            read_into(values.view(-1), model, old, first=0)
        return _like(old, values)

    _replace_parameters(model, place)
    model.sources = None


def place_empty(model: RewardModel, device: torch.device, *, dtype: torch.dtype) -> None:
    """Give every parameter its memory on ``device``; those on ``meta`` have no values yet."""

    def place(old: nn.Parameter) -> nn.Parameter:
        if old.is_meta:
            return _like(old, torch.empty(old.shape, device=device, dtype=dtype))
        if not old.is_floating_point():  # in 4 bits
            return old if old.device == device else old.to(device)  # type: ignore[return-value]
        return _like(old, old.detach().to(device, dtype))

    _replace_parameters(model, place)
    model.sources = None


def place_sharded(
    model: RewardModel,
    device: torch.device,
    deepspeed: Any,
    settings: dict[str, Any],
    *,
    dtype: torch.dtype,
) -> None:
    """Give every parameter its values on this rank, and shard it as ``settings`` say.

    DeepSpeed copies a rank's part, or parts, from a whole parameter. Only those get values; on a
    CPU, the rest takes no memory. What rank 0 alone has is sent whole.

    Raises:
        InputError: as ``refuse_other_files``.
    """
    refuse_other_files(model)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    secondary_size: int = settings["zero_optimization"]["zero_hpz_partition_size"]
    shard = _sharding(deepspeed, settings, dtype)
    assert model.sources is not None
    sources = model.sources

    def place(old: nn.Parameter) -> nn.Parameter:
        whole = torch.empty(old.shape, device=device, dtype=dtype)
        if old in sources:
            for first, last in parts_of(old.numel(), rank, world_size, secondary_size):
                read_into(whole.view(-1)[first:last], model, old, first=first)
        else:
            if rank == 0:
                whole.copy_(old.detach())
            if world_size > 1:
                dist.broadcast(whole, 0)
        new = _like(old, whole)
        shard(new)
        return new

    _replace_parameters(model, place)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    model.sources = None


def refuse_other_files(model: RewardModel) -> None:
    """Check that all ranks would read their parts of a lean model from the same files.

    Every rank calls it. Files are compared by names, sizes, and ``NUM_SAMPLES`` blocks of each.

    Raises:
        InputError: they differ, so the parts would make a model that nobody has.
    """
    files = sorted({source.file for source in (model.sources or {}).values()})
    own = [(file.name, file.stat().st_size, _sample(file)) for file in files]
    hosts: dict[str, list[str]] = {}
    for host, digest in gather_objects((socket.gethostname(), str(own))):
        hosts.setdefault(digest, []).append(host)
    if len(hosts) > 1:
        groups = sorted(", ".join(sorted(set(names))) for names in hosts.values())
        raise InputError(
            f"model.name_or_path '{model.classifier.config.name_or_path}' is not the same model on "
            f"all machines: its weight files on {groups[0]} differ from those on {groups[1]}. Put "
            "the same files on every machine, or name a commit on the Hub in model.revision"
        )


def _sample(file: Path) -> str:
    """Return the SHA-256 of blocks at equal distances in a file, with its beginning and end."""
    digest, room = hashlib.sha256(), max(file.stat().st_size - SAMPLE, 0)
    with file.open("rb") as opened:
        for i in range(NUM_SAMPLES):
            opened.seek(room * i // (NUM_SAMPLES - 1))
            digest.update(opened.read(SAMPLE))
    return digest.hexdigest()


def parts_of(
    numel: int, rank: int, world_size: int, secondary_size: int = 1
) -> list[tuple[int, int]]:
    """Return the extents of a flat parameter that a rank keeps under ZeRO-3.

    Parts are equal, the last ones cut at the end (DeepSpeed 0.19.8, ``partition_parameters.py``,
    ``_partition_param`` and ``_partition_param_sec``).
    """
    length = -(-numel // world_size)
    lengths = {world_size: length}
    if secondary_size > 1:
        lengths[secondary_size] = length * world_size // secondary_size
    starts = {size: rank % size * each for size, each in lengths.items()}
    return [
        (min(starts[size], numel), min(starts[size] + each, numel))
        for size, each in lengths.items()
    ]


def read_into(part: Tensor, model: RewardModel, parameter: nn.Parameter, *, first: int) -> None:
    """Fill a flat part of a parameter from its file; it begins at element ``first``."""
    assert model.sources is not None
    source = model.sources[parameter]
    for start in range(0, len(part), MOST_AT_ONCE):
        piece = part[start : start + MOST_AT_ONCE]
        low = first + start
        piece.copy_(source.read(low, low + len(piece)).to(parameter.dtype))


def _like(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=old.requires_grad)


def _replace_parameters(model: nn.Module, place: Place) -> None:
    """Replace every parameter, once even if several modules share it, and free it then."""
    placed: dict[int, nn.Parameter] = {}
    """By the identity of what they replace; all of those are there at the beginning."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in placed:
                placed[id(parameter)] = place(parameter)
            module._parameters[name] = placed[id(parameter)]


def stream_whole(
    model: RewardModel, gather: Callable[[list[Tensor]], Any] | None, *, rank: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield each full weight on the CPU on rank 0; ``gather`` makes a sharded one whole.

    Weights that are on the CPU already are not copied, and those of a lean model are read from
    their files. Those in 4 bits become the values that the model computes with.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if rank == 0 and tensor.is_meta:
            read = torch.empty(tensor.shape, dtype=tensor.dtype)
            read_into(read.view(-1), model, tensor, first=0)
            yield name, read
            continue
        if rank == 0 and tensor.dtype == torch.uint8:
            from rm_ray.model.tuning.quantization import dequantize

            yield name, dequantize(tensor).to("cpu")
            continue
        is_sharded = gather is not None and hasattr(tensor, "ds_id")
        with gather([tensor]) if gather is not None and is_sharded else nullcontext():
            values = tensor.detach().to("cpu", copy=is_sharded) if rank == 0 else None
        if values is not None:
            yield name, values


def _sharding(deepspeed: Any, settings: dict[str, Any], dtype: torch.dtype) -> Callable[..., None]:
    """Return how DeepSpeed shards one whole parameter: ``zero.Init``, but without a broadcast."""
    has_second = settings["zero_optimization"]["zero_hpz_partition_size"] > 1
    groups = deepspeed.utils.groups
    initial = deepspeed.zero.Init(
        module=nn.Module(),
        config_dict_or_path=settings,
        dtype=dtype,
        # That of an earlier engine in this process, if any: DeepSpeed makes it only once.
        zero_param_parallel_group=(
            groups._get_zero_param_intra_parallel_group() if has_second else None
        ),
    )

    def convert(parameter: Any) -> None:
        initial._convert_to_deepspeed_param(parameter)
        parameter.partition()

    return convert
