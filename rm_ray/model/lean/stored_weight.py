"""One weight in a model's files, read in parts."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from rm_ray.model.weight_files import read_headers


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """The place of a weight in a file."""

    file: Path
    name: str
    shape: torch.Size
    dtype: torch.dtype

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return elements ``[first, last)`` of the flat weight, in the dtype of its file.

        Reads no other rows of a safetensors file, and maps none of it into memory: what a process
        has read from a mapped file counts as its own.
        """
        last = self.shape.numel() if last is None else last
        if self.file.suffix != ".safetensors":
            return _mapped(self.file)[self.name].reshape(-1)[first:last]
        with safe_open(self.file, "pt", backend="pread") as opened:
            stored = opened.get_slice(self.name)
            if len(self.shape) == 0:
                whole: Tensor = opened.get_tensor(self.name)
                return whole.reshape(-1)[first:last]
            width = self.shape[1:].numel()
            row = first // width
            rows: Tensor = stored[row : -(-last // width)]
        return rows.reshape(-1)[first - row * width : last - row * width]


def find_stored_weights(files: Sequence[Path]) -> dict[str, StoredWeight] | None:
    """Return the weights in ``files`` by name, the later one of two.

    None if a file must be read whole, like PyTorch's older pickles, which are no zip archives.

    Raises:
        InputError: as ``read_headers``.
    """
    if any(file.suffix != ".safetensors" and not zipfile.is_zipfile(file) for file in files):
        return None
    return {
        name: StoredWeight(file=file, name=name, shape=weight.shape, dtype=weight.dtype)
        for file in files
        for name, weight in read_headers([file]).items()
    }


@lru_cache(maxsize=1)
def _mapped(file: Path) -> dict[str, Tensor]:
    """Return the weights of a zipped pickle, mapped into memory: pages are read when used."""
    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return weights
