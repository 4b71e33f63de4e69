"""A classifier without values: parameters on ``meta``, each with its place in the model's files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Size, Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, revert_weight_conversion
from transformers.utils import logging as transformers_logging

from rm_ray.model.lean.stored_weight import StoredWeight

HEAD = "score."
"""Prefix of the head, which is built apart."""

Report = dict[str, Any]
"""transformers' report on how the weights in files fit a model."""

Sources = dict[nn.Parameter, StoredWeight]
"""Where the values of parameters on ``meta`` are."""


def outline_from_files(
    architecture: PretrainedConfig,
    stored: Mapping[str, StoredWeight],
    *,
    dtype: torch.dtype,
    attention: str,
) -> tuple[PreTrainedModel, Sources, Report] | None:
    """Return the classifier that transformers would load, and where its weights are stored.

    None if one is not stored as the model has it: experts that transformers joins, for example.

    transformers itself finds the weight of each parameter. It gets stand-ins: tensors of a weight's
    shape and of the loading dtype, whose elements all share one place in memory, by which the
    parameter is recognized. Buffers are computed, the head is drawn, and random numbers are used up
    exactly as if it had loaded the weights.
    """
    if not is_stored_as_is(_bare(architecture)):
        return None
    stand_ins = {name: stand_in(each.shape, dtype) for name, each in stored.items()}
    by_place = {place_of(tensor): stored[name] for name, tensor in stand_ins.items()}
    classifier, report = _load(architecture, stand_ins, dtype=dtype, attention=attention)
    sources: Sources = {}
    for name, parameter in [*classifier.named_parameters()]:
        source = by_place.get(place_of(parameter))
        if source is not None and source.shape == parameter.shape:
            sources[_to_meta(classifier, name)] = source
        elif not name.startswith(HEAD):
            return None
    return classifier, sources, report


def outline_alike(
    architecture: PretrainedConfig, *, dtype: torch.dtype, attention: str
) -> PreTrainedModel | None:
    """Return the classifier for a process that receives all values from another one.

    None if transformers cannot build it so.
    """
    bare = _bare(architecture)
    shapes = {name: parameter.shape for name, parameter in bare.named_parameters()}
    if shapes.keys() != bare.state_dict().keys():
        return None
    stand_ins = {name: stand_in(shape, dtype) for name, shape in shapes.items()}
    with quiet_loading():
        classifier, report = _load(architecture, stand_ins, dtype=dtype, attention=attention)
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        return None
    for name in shapes:
        _to_meta(classifier, name)
    return classifier


def compare(
    architecture: PretrainedConfig, weights: Mapping[str, Tensor]
) -> tuple[PreTrainedModel, Report]:
    """Return the classifier on ``meta``, and the report on weights without values, from headers."""
    with quiet_loading():
        classifier, report = _class_of(architecture).from_pretrained(
            None,
            config=architecture,
            state_dict=dict(weights),
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return classifier, dict(report)


def names_in_files(
    classifier: PreTrainedModel, shapes: Mapping[str, Size]
) -> dict[str, str] | None:
    """Return how ``save_pretrained`` calls each parameter, in the order in which it writes them.

    None if it leaves out any, or changes more than its name.
    """
    if classifier.all_tied_weights_keys or classifier._keys_to_ignore_on_save:
        return None
    if not is_stored_as_is(classifier):
        return None
    stand_ins = {name: stand_in(shape, torch.float32) for name, shape in shapes.items()}
    own_names = {place_of(tensor): name for name, tensor in stand_ins.items()}
    renamed = revert_weight_conversion(classifier, stand_ins)
    found = {own_names.get(place_of(tensor), ""): name for name, tensor in renamed.items()}
    return found if found.keys() == shapes.keys() else None


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' report and progress bar."""
    verbosity = transformers_logging.get_verbosity()
    shows_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_bar:
            transformers_logging.enable_progress_bar()


def stand_in(shape: Size, dtype: torch.dtype) -> Tensor:
    """Return a tensor of a shape that takes the memory of one element, its own."""
    return torch.zeros(1, dtype=dtype).expand(shape)


def place_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory."""
    return tensor.untyped_storage().data_ptr()


def _class_of(architecture: PretrainedConfig) -> type[PreTrainedModel]:
    found: type[PreTrainedModel] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(architecture)]
    return found


def _bare(architecture: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
            copy.deepcopy(architecture), dtype=torch.float32
        )
    return model


def is_stored_as_is(classifier: PreTrainedModel) -> bool:
    """Return whether files have this model's parameters, perhaps renamed, and no buffers."""
    conversions = get_model_conversion_mapping(classifier)
    parameters = dict(classifier.named_parameters())
    has_only_parameters = parameters.keys() == classifier.state_dict(keep_vars=True).keys()
    return has_only_parameters and not any(isinstance(c, WeightConverter) for c in conversions)


def _load(
    architecture: PretrainedConfig,
    stand_ins: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    attention: str,
) -> tuple[PreTrainedModel, Report]:
    classifier, report = _class_of(architecture).from_pretrained(
        None,
        config=architecture,
        state_dict=dict(stand_ins),
        dtype=dtype,
        attn_implementation=attention,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return classifier, dict(report)


def _to_meta(classifier: PreTrainedModel, name: str) -> nn.Parameter:
    """Replace a parameter by one on ``meta``, and return that."""
    place, _, last = name.rpartition(".")
    module = classifier.get_submodule(place)
    old = module._parameters[last]
    assert old is not None
    new = nn.Parameter(old.to("meta"), requires_grad=old.requires_grad)
    module._parameters[last] = new
    return new
