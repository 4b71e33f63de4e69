"""Which files hold a model's weights, whether they are whole, and what their headers say."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rm_ray.errors import InputError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that say which of several files holds which weight."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""What all weights are in where there is one file."""

POINTER = b"version https://git-lfs.github.com/spec"
"""What a file begins with that stands for one in Git LFS (git-lfs, docs/spec.md)."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Data types by their names in safetensors' headers."""


def choose_index(files: Collection[str]) -> str | None:
    """Return the index that transformers would read of a model's files; none where it reads none.

    One whole file comes before several, and safetensors before pickles.
    """
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if whole in files or index in files:
            return None if whole in files else index
    return None


def read_index(text: str) -> dict[str, Any]:
    """Return an index of weight files, with its ``weight_map``.

    Raises:
        InputError: it is none.
    """
    try:
        index: dict[str, Any] = json.loads(text)
        dict(index["weight_map"])
    except (ValueError, TypeError, KeyError):
        raise InputError(
            "the index of the model's weight files is not whole; download the model again"
        ) from None
    return index


def find_missing_weights(files: Collection[str], index: dict[str, Any] | None) -> list[str]:
    """Return the weight files that a model's own index names and that are not among its files."""
    if index is None:
        return [] if set(WHOLE) & set(files) else [WHOLE[0]]
    return sorted(set(index["weight_map"].values()) - set(files))


def choose_weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that transformers reads the weights from.

    Raises:
        InputError: there are none, or some are missing.
    """
    names = {path.name for path in folder.iterdir()}
    index = choose_index(names)
    told = None if index is None else read_index((folder / index).read_text(errors="replace"))
    if missing := find_missing_weights(names, told):
        raise InputError(f"{list_some(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if told is not None:
        return [folder / name for name in sorted(set(told["weight_map"].values()))]
    return [folder / next(name for name in WHOLE if name in names)]


def read_headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the weights of some files as tensors without values, by their names in the files.

    Raises:
        InputError: a file is not whole, or is no file of weights.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            refuse_pointer(file)
            found = _read_safetensors(file) if file.suffix == ".safetensors" else _read_bin(file)
        except OSError as error:
            raise InputError(f"{file.name} cannot be read: {error.strerror or error}") from None
        weights |= found
    return weights


def refuse_pointer(file: Path) -> None:
    """See that a file is more than a pointer to itself.

    Raises:
        InputError: it stands for one that Git LFS has not brought.
    """
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{file.name} is a pointer of Git LFS and not the file that it stands for; run "
                "'git lfs pull' in the folder"
            )


def without_values(shape: Sequence[int], dtype: str) -> Tensor:
    """Return a tensor of a shape and one of safetensors' data types, on ``meta``."""
    # What is stored in a type that PyTorch lacks is not trained on, whatever it is.
    return torch.empty(tuple(shape), dtype=DTYPES.get(dtype, torch.uint8), device="meta")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "numpy") as opened:  # the header says how long the file must be
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: without_values(each.get_shape(), each.get_dtype())
                for name, each in slices.items()
            }
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file.name} is not whole ({reason}); download it again") from None


_CODE = ("nsupported global", "unsupported GLOBAL", "Trying to call", "Can only create")
"""In PyTorch's refusals of what a pickle would call."""


def _read_bin(file: Path) -> dict[str, Tensor]:
    """Read the names and shapes of a pickled file; its values stay on the disk."""
    is_zip = zipfile.is_zipfile(file)
    try:
        found = torch.load(file, map_location="meta", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if any(kind in str(error) for kind in _CODE):
            raise InputError(
                f"{file.name} holds more than weights, which would be run as code; where you trust "
                "the file, save the model as safetensors"
            ) from None
        raise InputError(f"{file.name} is no file of weights; download it again") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).partition(". ")[0].splitlines()[0]
        raise InputError(f"{file.name} is not whole ({reason}); download it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{file.name} holds a {type(found).__name__} and no weights by names")
    return {str(name): weight for name, weight in found.items() if isinstance(weight, Tensor)}


def list_some(names: Collection[str], most: int = 3) -> str:
    """Return some names, and how many there are beside them."""
    known = sorted(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
