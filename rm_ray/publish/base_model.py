"""A run's base model, checked before a worker starts: in a folder, the cache, or on the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from rm_ray.config.train_config import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.base_check import BaseModel, check_base, read_folder
from rm_ray.model.reward_model import has_weights, read_architecture
from rm_ray.model.weight_files import list_some, read_headers
from rm_ray.publish.access import find_cached, read_hub_headers
from rm_ray.publish.hub import HubAwayError

logger = logging.getLogger(__name__)


def find_base(config: ModelConfig) -> BaseModel | None:
    """Check a base model by the headers of its files; None where they tell nothing.

    Raises:
        InputError: a weight or a file is missing, cut short, of another shape, or quantized.
        HubAwayError: its files are not all here, and the Hub does not answer.
    """
    if not has_weights(config):
        return None
    architecture = read_architecture(config)
    weights = _read_weights(config)
    return None if weights is None else check_base(config, architecture, weights)


def _read_weights(config: ModelConfig) -> dict[str, Tensor] | None:
    name = config.name_or_path
    folder = Path(name).expanduser()
    cached = None if folder.is_dir() else find_cached(name, revision=config.revision)
    try:
        if folder.is_dir():
            return read_folder(folder)
        if cached is not None:
            return read_headers(cached)
    except InputError as error:
        raise InputError(f"model.name_or_path '{name}': {error}") from None
    return read_hub_headers(name, revision=config.revision)


def log_base_weights(config: ModelConfig) -> None:
    """Check the base model, and say what becomes of its head and of what is not used.

    Raises:
        InputError: as ``find_base``.
    """
    if not has_weights(config):
        return
    name = config.name_or_path
    try:
        base = find_base(config)
    except HubAwayError as error:
        logger.warning(
            "the weights of '%s' are not all on this machine, and cannot be checked before workers "
            "read them: %s",
            name,
            error,
        )
        return
    if base is None:
        logger.info("head: drawn anew; the weights of '%s' are checked by who reads them", name)
        return
    own = f"; the one that '{name}' has is not used" if base.has_head else ""
    logger.info("head: drawn anew%s", own)
    if base.unused:
        logger.warning(
            "the model has no place for %d weights of '%s', which are left out: %s",
            len(base.unused),
            name,
            list_some(base.unused),
        )
