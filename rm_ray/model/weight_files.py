"""A model's weight files: which ones to read, whether they are complete, and their headers."""

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
"""Files that list which weight file holds each weight."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of a single file that holds all weights."""

POINTER = b"version https://git-lfs.github.com/spec"
"""First bytes of a Git LFS pointer (git-lfs, docs/spec.md)."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Dtypes by their names in safetensors headers."""


def choose_index(files: Collection[str]) -> str | None:
    """Return the index that transformers would read among ``files``; None if it reads none.

    transformers prefers a single file to several, and safetensors to pickles.
    """
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if whole in files or index in files:
            return None if whole in files else index
    return None


def read_index(text: str) -> dict[str, Any]:
    """Return an index of weight files, with its ``weight_map``.

    Raises:
        InputError: the text is not an index.
    """
    try:
        index: dict[str, Any] = json.loads(text)
        dict(index["weight_map"])
    except (ValueError, TypeError, KeyError):
        raise InputError(
            "the index of the model's weight files is incomplete. Download the model again"
        ) from None
    return index


def find_missing_weights(files: Collection[str], index: dict[str, Any] | None) -> list[str]:
    """Return the weight files that the index lists but the model's ``files`` do not include."""
    if index is None:
        return [] if set(WHOLE) & set(files) else [WHOLE[0]]
    return sorted(set(index["weight_map"].values()) - set(files))


def choose_weight_files(folder: Path) -> list[Path]:
    """Return the weight files in a folder that transformers reads.

    Raises:
        InputError: a weight file is missing.
    """
    names = {path.name for path in folder.iterdir()}
    index = choose_index(names)
    found = None if index is None else read_index((folder / index).read_text(errors="replace"))
    if missing := find_missing_weights(names, found):
        raise InputError(f"{list_some(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if found is not None:
        return [folder / name for name in sorted(set(found["weight_map"].values()))]
    return [folder / next(name for name in WHOLE if name in names)]


def read_headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the weights in ``files`` as tensors without values, by name.

    Raises:
        InputError: a file is unreadable, incomplete, or not a weight file.
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
    """Refuse a file that is only a Git LFS pointer.

    Raises:
        InputError: Git LFS has not fetched the file.
    """
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise InputError(
                f"{file.name} is a Git LFS pointer, not the file itself. Run 'git lfs pull' in its "
                "folder"
            )


def without_values(shape: Sequence[int], dtype: str) -> Tensor:
    """Return a tensor on ``meta`` from a shape and a safetensors dtype name."""
    # Any dtype that PyTorch lacks is not trainable, so an untrainable one can stand for it.
    return torch.empty(tuple(shape), dtype=DTYPES.get(dtype, torch.uint8), device="meta")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "numpy") as opened:  # checks the file's size against its header
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: without_values(each.get_shape(), each.get_dtype())
                for name, each in slices.items()
            }
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file.name} is incomplete ({reason}). Download it again") from None


_CODE = ("nsupported global", "unsupported GLOBAL", "Trying to call", "Can only create")
"""Parts of PyTorch's messages when it refuses code in a pickle."""


def _read_bin(file: Path) -> dict[str, Tensor]:
    """Read the names and shapes in a pickled file without its values."""
    is_zip = zipfile.is_zipfile(file)
    try:
        found = torch.load(file, map_location="meta", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        if any(kind in str(error) for kind in _CODE):
            raise InputError(
                f"{file.name} contains code, which loading it would run. If you trust the file, "
                "save the model as safetensors"
            ) from None
        raise InputError(f"{file.name} is not a weight file. Download it again") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).partition(". ")[0].splitlines()[0]
        raise InputError(f"{file.name} is incomplete ({reason}). Download it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{file.name} holds a {type(found).__name__}, not weights by name")
    return {str(name): weight for name, weight in found.items() if isinstance(weight, Tensor)}


def list_some(names: Collection[str], most: int = 3) -> str:
    """Return up to ``most`` names as text, and the number of further names."""
    known = sorted(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
