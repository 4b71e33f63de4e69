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
from transformers.utils.hub import cached_file

from rm_ray.errors import InputError
from rm_ray.pretrained import PretrainedName

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that list which weight file holds each weight."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Names of a single file that holds all weights."""

HEAD_FILES = ("value_head.safetensors", "value_head.bin")
"""Files in which LLaMA-Factory stores the head of a reward model, beside its backbone."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Files in which peft stores an adapter."""

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
    if found is not None:  # shards may be in folders of their own
        names |= {name for name in set(found["weight_map"].values()) if (folder / name).is_file()}
    if missing := find_missing_weights(names, found):
        raise InputError(f"{list_some(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    if found is not None:
        return [folder / name for name in sorted(set(found["weight_map"].values()))]
    return [folder / next(name for name in WHOLE if name in names)]


def find_loaded_files(model: PretrainedName) -> list[Path]:
    """Return the weight files of a model that transformers has loaded on this machine.

    Raises:
        InputError: they are neither in its folder nor in the Hub's cache.
    """
    return _find_files(model, is_cached=True)


def fetch_weight_files(model: PretrainedName) -> list[Path]:
    """Return the weight files that transformers would load, downloaded from the Hub if need be.

    Of several processes that share a cache, one downloads a file and the others wait for it.

    Raises:
        InputError: they are neither in its folder nor on the Hub.
    """
    return _find_files(model, is_cached=False)


def _find_files(model: PretrainedName, *, is_cached: bool) -> list[Path]:
    if model.kind == "folder":
        return choose_weight_files(model.path)
    for whole, index in zip(WHOLE, INDEXES, strict=True):
        if file := _find_on_hub(model, whole, is_cached=is_cached):
            return [file]
        if file := _find_on_hub(model, index, is_cached=is_cached):
            names = sorted(set(read_index(file.read_text())["weight_map"].values()))
            found = (_find_on_hub(model, name, is_cached=is_cached) for name in names)
            return [path for path in found if path]
    place = "in this machine's cache of the Hub" if is_cached else "on the Hub"
    raise InputError(f"{model.text}: its weight files are not {place}")


def find_head_file(model: PretrainedName) -> Path | None:
    """Return the model's file with nothing but a head, downloaded from the Hub; None if none."""
    if model.kind == "folder":
        found = (model.path / name for name in HEAD_FILES)
        return next((file for file in found if file.is_file()), None)
    return next((file for name in HEAD_FILES if (file := _find_on_hub(model, name))), None)


def find_adapter_file(adapter: PretrainedName) -> Path:
    """Return an adapter's weight file, downloaded from the Hub.

    Raises:
        InputError: it has none.
    """
    for name in ADAPTER_FILES:
        local = adapter.path / name
        found = local if adapter.kind == "folder" else _find_on_hub(adapter, name)
        if found is not None and found.is_file():
            return found
    raise InputError(f"{adapter.text} is an adapter without weights: {ADAPTER_FILES[0]} is missing")


def _find_on_hub(model: PretrainedName, name: str, *, is_cached: bool = False) -> Path | None:
    """Return a model's file in the cache of the Hub; None if the model does not have it."""
    found = cached_file(
        model.name,
        name,
        revision=model.revision,
        local_files_only=is_cached,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


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


def read_weight(files: Sequence[Path], name: str) -> Tensor:
    """Return one weight with its values, in the dtype of its file; later files win.

    Raises:
        KeyError: no file has it.
    """
    for file in reversed(files):
        weight: Tensor
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                if name in opened.keys():  # noqa: SIM118
                    weight = opened.get_tensor(name)
                    return weight
        else:
            is_zip = zipfile.is_zipfile(file)
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
            if name in found:
                weight = found[name]
                return weight
    raise KeyError(name)


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
