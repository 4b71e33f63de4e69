"""Checks of a run's base model before workers start: in a folder, the cache, or on the Hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.architecture import read_architecture
from rm_ray.model.base_check import BaseModel, check_base, find_folder_files
from rm_ray.model.kept_head import refuse_bias, require_head_files
from rm_ray.model.tuning.adapter_base import HEAD_WEIGHT, find_adapter
from rm_ray.model.weight_files import find_head_file, list_some, read_headers, read_weight
from rm_ray.pretrained import PretrainedName, base_model
from rm_ray.publish.access import find_cached, read_hub_headers, read_hub_weight
from rm_ray.publish.hub import HubAwayError

logger = logging.getLogger(__name__)


def find_base(config: ModelConfig) -> BaseModel | None:
    """Check a base model by its files' headers; return None if it has no readable headers.

    Raises:
        InputError: a file or weight is missing, truncated, quantized, or of the wrong shape; or
            ``model.head`` cannot be followed.
        HubAwayError: not all files are on this machine, and the Hub does not answer.
    """
    require_head_files(config)
    model = base_model(config)
    if not model.has_weights:
        return None
    architecture = read_architecture(config)
    files, head_file = find_local_files(model), find_head_file(model)
    local = [*(files or ()), *([head_file] if head_file else ())]
    weights = found = _read_local(model, local)
    if files is None:
        remote = read_hub_headers(model.name, revision=model.revision)
        if remote is None:
            return None
        weights = remote | found
    if (adapter := find_adapter(config)) is not None and adapter.head is not None:
        weights = {**weights, HEAD_WEIGHT: adapter.head}
    base = check_base(config, architecture, weights)
    if base.head is not None and (bias := base.head.bias) is not None:
        value = (
            read_weight(local, bias)
            if bias in found
            else read_hub_weight(model.name, bias, revision=model.revision)
        )
        refuse_bias(bias, value, model=model.text)
    return base


def find_local_files(model: PretrainedName) -> list[Path] | None:
    """Return a model's weight files on this machine; None unless all are on it."""
    if model.kind != "folder":
        return find_cached(model.name, revision=model.revision)
    try:
        return find_folder_files(model.path)
    except InputError as error:
        raise InputError(f"{model.text}: {error}") from None


def _read_local(model: PretrainedName, files: Sequence[Path]) -> dict[str, Tensor]:
    try:
        return read_headers(files)
    except InputError as error:
        raise InputError(f"{model.text}: {error}") from None


def log_base_weights(config: ModelConfig) -> str:
    """Check the base model, and log how its head and unused weights are handled.

    Return the weight from which the head starts, 'new', or 'unknown' until workers load it.

    Raises:
        InputError: as for ``find_base``.
    """
    require_head_files(config)
    name = config.name_or_path
    if not base_model(config).has_weights:
        return "new"
    try:
        base = find_base(config)
    except HubAwayError as error:
        logger.warning(
            "cannot check the weights of '%s' before workers load them, since not all are on this "
            "machine: %s",
            name,
            error,
        )
        return "new" if config.head == "new" else "unknown"
    if base is None and config.head == "new":
        logger.info("head: newly initialized; workers check the weights of '%s'", name)
        return "new"
    if base is None:
        logger.info("head: workers keep that of '%s', if it has one, and check its weights", name)
        return "unknown"
    if base.head is not None:
        logger.info("head: kept from '%s' (%s)", name, base.head.weight)
    elif base.replaced:
        own = list_some(base.replaced)
        logger.info("head: newly initialized; the head of '%s' (%s) is not used", name, own)
    else:
        logger.info("head: newly initialized")
    if base.unused:
        logger.warning(
            "ignoring %d weights of '%s' that the model does not have: %s",
            len(base.unused),
            name,
            list_some(base.unused),
        )
    return base.head.weight if base.head else "new"
