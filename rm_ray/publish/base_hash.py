"""A hash of a base model's content, which checkpoints that hold only a part of a model depend on.

It covers the config and the weight files, and those of an adapter, by their SHA-256. On the Hub
these are known without reading the weights; a process reads a folder's file once, and again only if
its size or time of change is another.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers.utils.hub import cached_file

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line
from rm_ray.model.architecture import read_architecture
from rm_ray.model.weight_files import find_adapter_file, find_head_file
from rm_ray.pretrained import PretrainedName, adapter_of, base_model, find_adapter_config
from rm_ray.publish.access import list_hashes
from rm_ray.publish.base_model import find_local_files
from rm_ray.publish.hub import HubAwayError
from rm_ray.runs.manifest import describe_file


def hash_base(config: ModelConfig) -> str:
    """Return the hash of a run's base model.

    Random weights follow from the config, the seed and PyTorch's version.

    Raises:
        InputError: the model or one of its files is not there, or the Hub refuses it.
        HubAwayError: not all files are on this machine, and the Hub does not answer.
    """
    model = base_model(config)
    try:
        content = _hash_content(config, model)
    except HubAwayError:
        raise
    except OSError as error:
        raise InputError(
            f"{model.text}: the base model is no longer there ({first_line(error)}). Checkpoints "
            "hold only what is trained; put it back where it was"
        ) from None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash_content(config: ModelConfig, model: PretrainedName) -> dict[str, str]:
    """Return what identifies a base model: the hashes of its files, by their names in it.

    Raises:
        OSError: a file is missing.
    """
    content = _hash_model(config, model)
    if (adapter := adapter_of(config)) is not None:
        own = [find_adapter_config(adapter), find_adapter_file(adapter)]
        content |= _hash_files({f"adapter/{path.name}": path for path in own if path})
    return content


def _hash_model(config: ModelConfig, model: PretrainedName) -> dict[str, str]:
    if not model.has_weights:
        architecture = read_architecture(config).to_json_string(use_diff=False)
        return {"config": architecture, "torch": torch.__version__}
    described, head, files = _find_config(model), find_head_file(model), find_local_files(model)
    content = _hash_files({path.name: path for path in (described, head) if path})
    if files is None:
        return content | list_hashes(model.name, revision=model.revision)
    home = described.parent
    return content | _hash_files({path.relative_to(home).as_posix(): path for path in files})


def _find_config(model: PretrainedName) -> Path:
    """Return a model's config.json in its folder or in this machine's cache of the Hub."""
    if model.kind == "folder":
        return model.path / "config.json"
    found = cached_file(
        model.name,
        "config.json",
        revision=model.revision,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        raise HubAwayError("the Hub does not answer, and config.json is not on this machine")
    return Path(found)


def _hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of files by name; several are read at a time."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(files, pool.map(_hash, files.values()), strict=True))


def _hash(path: Path) -> str:
    """Return a file's SHA-256; the Hub's cache names large files by it."""
    name = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    state = path.stat()
    return _read_hash(path.resolve(), state.st_size, state.st_mtime_ns)


@functools.cache
def _read_hash(path: Path, size: int, changed_ns: int) -> str:
    """Return the SHA-256 of a file of a size and a time of change."""
    return str(describe_file(path)["sha256"])
