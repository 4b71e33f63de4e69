"""Checks of a run's base model before workers start: in a folder, the cache, or on the Hub."""

from __future__ import annotations

import logging

from torch import Tensor

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.architecture import read_architecture
from rm_ray.model.base_check import BaseModel, check_base, read_folder
from rm_ray.model.weight_files import list_some, read_headers
from rm_ray.pretrained import base_model
from rm_ray.publish.access import find_cached, read_hub_headers
from rm_ray.publish.hub import HubAwayError

logger = logging.getLogger(__name__)


def find_base(config: ModelConfig) -> BaseModel | None:
    """Check a base model by its files' headers; return None if it has no readable headers.

    Raises:
        InputError: a file or weight is missing, truncated, quantized, or of the wrong shape.
        HubAwayError: not all files are on this machine, and the Hub does not answer.
    """
    if not base_model(config).has_weights:
        return None
    architecture = read_architecture(config)
    weights = _read_weights(config)
    return None if weights is None else check_base(config, architecture, weights)


def _read_weights(config: ModelConfig) -> dict[str, Tensor] | None:
    model = base_model(config)
    is_folder = model.kind == "folder"
    cached = None if is_folder else find_cached(model.name, revision=model.revision)
    try:
        if is_folder:
            return read_folder(model.path)
        if cached is not None:
            return read_headers(cached)
    except InputError as error:
        raise InputError(f"{model.text}: {error}") from None
    return read_hub_headers(model.name, revision=model.revision)


def log_base_weights(config: ModelConfig) -> None:
    """Check the base model, and log how its head and unused weights are handled.

    Raises:
        InputError: as for ``find_base``.
    """
    name = config.name_or_path
    if not base_model(config).has_weights:
        return
    try:
        base = find_base(config)
    except HubAwayError as error:
        logger.warning(
            "cannot check the weights of '%s' before workers load them, since not all are on this "
            "machine: %s",
            name,
            error,
        )
        return
    if base is None:
        logger.info("head: newly initialized; workers check the weights of '%s'", name)
        return
    own = f"; the head of '{name}' is not used" if base.has_head else ""
    logger.info("head: newly initialized%s", own)
    if base.unused:
        logger.warning(
            "ignoring %d weights of '%s' that the model does not have: %s",
            len(base.unused),
            name,
            list_some(base.unused),
        )
