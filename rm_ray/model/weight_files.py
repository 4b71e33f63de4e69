"""Which files hold a model's weights, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rm_ray.errors import InputError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that say which of several files holds which weight."""

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""What all weights are in where there is one file."""


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


def list_weight_files(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold weights."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])


def find_faulty_weights(folder: Path) -> list[str]:
    """Return the weight files of a folder that are missing or cut short, and why.

    Raises:
        InputError: its index is not one.
    """
    files = list_weight_files(folder)
    index = choose_index([path.name for path in folder.iterdir()])
    told = None if index is None else read_index((folder / index).read_text())
    faults = [f"{name} is missing" for name in find_missing_weights([f.name for f in files], told)]
    for file in files:
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, "numpy"):
                pass  # the header says how long the file must be
        except (SafetensorError, OSError) as error:
            faults.append(f"{file.name} is not whole ({str(error).splitlines()[0]})")
    return faults
