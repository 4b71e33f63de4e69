"""Weights and optimizer state as slices of flat parameters, for any number of ranks.

Each rank writes one file with its slices, named ``kind/start/parameter``. Any number of ranks can
read the files of any other number: each copies the parts that overlap its own slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Extent = tuple[int, int]
"""The first element in a flat parameter, and the one after the last."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """A part of one flat parameter and its optimizer state, on a rank that holds it."""

    parameter: str
    start: int
    """Its first element in the flat parameter."""
    tensors: dict[str, Tensor]
    """``weight``, ``exp_avg``, ``exp_avg_sq``: ``[length]`` views of the live training state."""
    is_written: bool
    """Whether this rank writes it to checkpoints; other ranks may hold it too."""

    @property
    def extent(self) -> Extent:
        """The part of the flat parameter that the slice covers."""
        return self.start, self.start + len(self.tensors["weight"])


def buffer_slices(model: nn.Module, *, is_written: bool) -> list[Slice]:
    """Return the buffers that belong to a model's files, such as a router's bias.

    They are not trained: a resumed run has those of its base model.
    """
    stored = model.state_dict().keys()
    return [
        Slice(
            parameter=name,
            start=0,
            tensors={"weight": buffer.reshape(-1)},
            is_written=is_written,
        )
        for name, buffer in model.named_buffers()
        if name in stored
    ]


def write_slices(slices: Iterable[Slice], path: Path) -> None:
    """Write the slices with ``is_written`` to a file."""
    tensors = {
        f"{kind}/{part.start}/{part.parameter}": tensor.detach().cpu().contiguous()
        for part in slices
        if part.is_written
        for kind, tensor in part.tensors.items()
    }
    save_file(tensors, path)


def list_extents(path: Path) -> dict[str, list[Extent]]:
    """Return the extents in a file by parameter."""
    extents: dict[str, list[Extent]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (not a mapping)
            kind, start, parameter = key.split("/", 2)
            if kind == "weight":
                length = file.get_slice(key).get_shape()[0]
                extents.setdefault(parameter, []).append((int(start), int(start) + length))
    return extents


def read_slices(slices: Sequence[Slice], paths: Iterable[Path]) -> None:
    """Fill every slice from the files that hold parts of it.

    Raises:
        ValueError: the files do not cover a slice.
    """
    read: dict[tuple[str, int], list[Extent]] = {(p.parameter, p.start): [] for p in slices}
    for path in paths:
        extents = list_extents(path)
        with safe_open(path, framework="pt") as file:
            for part in slices:
                start, end = part.extent
                for first, last in extents.get(part.parameter, []):
                    low, high = max(start, first), min(end, last)
                    if low >= high:
                        continue
                    for kind, tensor in part.tensors.items():
                        stored = file.get_slice(f"{kind}/{first}/{part.parameter}")
                        tensor[low - start : high - start].copy_(stored[low - first : high - first])
                    read[part.parameter, part.start].append((low, high))
    _require_all(p.parameter for p in slices if not _cover(read[p.parameter, p.start], *p.extent))


def stream_weights(
    shapes: Mapping[str, torch.Size], paths: Iterable[Path]
) -> Iterator[tuple[str, int, Tensor]]:
    """Yield the parts of weights that files hold: name, first element, flat float32 values.

    Opens one file at a time, and reads one part at a time.

    Raises:
        ValueError: the files do not cover a parameter.
    """
    read: dict[str, list[Extent]] = {name: [] for name in shapes}
    for path in paths:
        with safe_open(path, framework="pt", backend="pread") as file:
            for key in file.keys():  # noqa: SIM118  (not a mapping)
                kind, start, parameter = key.split("/", 2)
                if kind == "weight" and parameter in read:
                    values = file.get_tensor(key)
                    read[parameter].append((int(start), int(start) + len(values)))
                    yield parameter, int(start), values
    _require_all(name for name, shape in shapes.items() if not _cover(read[name], 0, shape.numel()))


def _require_all(short: Iterable[str]) -> None:
    """Refuse a checkpoint that does not hold all of some parameters."""
    if names := sorted(set(short)):
        raise ValueError(f"the checkpoint does not hold all of {', '.join(names)}")


def _cover(read: Iterable[Extent], start: int, end: int) -> bool:
    """Return whether the extents cover another one."""
    for low, high in sorted(read):
        if low <= start:
            start = max(start, high)
    return start >= end
