"""Weights on their way into safetensors files, in any order and in parts.

Files have the names, contents and bytes that ``save_pretrained`` gives them, but no process ever
holds more than the part that it writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Size, Tensor

from rm_ray.model.weight_files import DTYPES, INDEXES, WHOLE

MAX_SHARD_SIZE = 50 * 10**9
"""Most bytes of a file, unless a single weight has more; transformers' default."""

_ALIGNMENT = 8


class ShardedWriter:
    """Open files for weights of known shapes, all of one dtype.

    Leaving the context writes the index, if there are several files.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Size],
        *,
        dtype: torch.dtype,
        max_shard_size: int = MAX_SHARD_SIZE,
    ) -> None:
        self.dtype = dtype
        self._folder, self._shapes = folder, shapes
        shards = split_into_shards(shapes, itemsize=dtype.itemsize, most=max_shard_size)
        self._file_of: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        """File of each weight, and its first byte there."""
        self._missing = {name: shape.numel() for name, shape in shapes.items()}
        for i, names in enumerate(shards):
            file = shard_name(i, len(shards))
            header = _header({name: shapes[name] for name in sorted(names)}, dtype)
            position = len(header)
            for name in sorted(names):
                self._places[name] = folder / file, position
                position += shapes[name].numel() * dtype.itemsize
            self._file_of |= dict.fromkeys(names, file)
            with (folder / file).open("wb") as opened:
                opened.write(header)
                opened.truncate(position)

    def write(self, name: str, values: Tensor, *, first: int = 0) -> None:
        """Write a flat part of a weight, which begins at element ``first``; each part once."""
        file, position = self._places[name]
        flat = values.detach().reshape(-1).to("cpu", self.dtype).contiguous()
        self._missing[name] -= len(flat)
        with file.open("r+b") as opened:
            opened.seek(position + first * self.dtype.itemsize)
            opened.write(flat.view(torch.uint8).numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        incomplete = sorted(name for name, missing in self._missing.items() if missing != 0)
        assert not incomplete, incomplete
        if len(set(self._file_of.values())) > 1:
            numel = sum(shape.numel() for shape in self._shapes.values())
            sizes = {"total_parameters": numel, "total_size": numel * self.dtype.itemsize}
            index = {"metadata": sizes, "weight_map": self._file_of}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self._folder / INDEXES[0]).write_text(text)


def split_into_shards(shapes: Mapping[str, Size], *, itemsize: int, most: int) -> list[list[str]]:
    """Return the names of each file's weights, split like huggingface_hub splits them."""
    shards: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, shape in shapes.items():
        own = shape.numel() * itemsize
        if own > most:
            shards.append([name])
            continue
        if size + own > most:
            shards.append(current)
            current, size = [], 0
        current.append(name)
        size += own
    return [*shards, current] if current else shards


def shard_name(i: int, num_shards: int) -> str:
    """Return the name of the file with index ``i``."""
    stem, _, suffix = WHOLE[0].partition(".")
    number = f"-{i + 1:05d}-of-{num_shards:05d}" if num_shards > 1 else ""
    return f"{stem}{number}.{suffix}"


def _header(shapes: Mapping[str, Size], dtype: torch.dtype) -> bytes:
    """Return the beginning of a file: the header's length, and the header, padded by spaces.

    Source: github.com/huggingface/safetensors, README, "Format".
    """
    known = next(name for name, each in DTYPES.items() if each == dtype)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        end = position + shape.numel() * dtype.itemsize
        entries[name] = {"dtype": known, "shape": [*shape], "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
