"""The check that a base model's files hold every trained weight, from their headers alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line
from rm_ray.model.weight_files import (
    choose_weight_files,
    list_some,
    read_headers,
    refuse_pointer,
)
from rm_ray.pretrained import base_model

HEAD = "score."
"""Prefix of the head's weights; training always initializes a new head."""

LANGUAGE_HEADS = ("lm_head.", "embed_out.")
"""Prefixes of heads that predict tokens; a reward model does not use them."""

WRAPPERS = {
    "_orig_mod.": "torch.compile. Save the wrapped model, model._orig_mod",
    "module.": "DistributedDataParallel. Save the wrapped model, model.module",
    "_fsdp_wrapped_module.": "FSDP. Save its full state dict",
    "_checkpoint_wrapped_module.": "a checkpoint wrapper. Save the wrapped model",
    "_forward_module.": "Lightning Fabric. Save the wrapped model",
    "base_model.model.": "PEFT. Merge the adapter first, with merge_and_unload()",
}
"""Prefixes that wrappers add to weight names, and how to save without them."""

TRAINABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """The weights in a base model's files."""

    num_weights: int
    has_head: bool
    """Whether they include a score head."""
    unused: tuple[str, ...] = ()
    """Names of weights that the reward model does not have, excluding language heads."""


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a model's folder as tensors without values, by name.

    Raises:
        InputError: the folder has no weights, or a file is missing or incomplete.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".model", ".jinja", ".txt") and file.is_file():
            refuse_pointer(file)
    return read_headers(choose_weight_files(folder))


def check_base(
    config: ModelConfig, architecture: PretrainedConfig, weights: Mapping[str, Tensor]
) -> BaseModel:
    """Compare the weights in a model's files, without values, with those that training needs.

    transformers renames, converts and ties them exactly as when it loads the model.

    Raises:
        InputError: a weight is missing, has the wrong shape, or is quantized.
    """
    model = base_model(config).text
    quantized = [
        name
        for name, weight in weights.items()
        if name.endswith(".weight") and weight.dtype not in TRAINABLE
    ]
    if quantized:
        dtype = str(weights[quantized[0]].dtype).removeprefix("torch.")
        raise InputError(
            f"{model} is quantized: {list_some(quantized)} as {dtype}. Choose the unquantized "
            "model, in float32, bfloat16 or float16"
        )
    try:
        comparison = _compare(architecture, weights)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"{model}: transformers cannot read its weights ({reason})") from None
    if comparison.missing:
        raise InputError(f"{model} {_describe_missing(architecture, weights, comparison)}")
    if comparison.mismatched:
        name, (found, expected) = next(iter(sorted(comparison.mismatched.items())))
        num_more = len(comparison.mismatched) - 1
        more = f" (and {num_more} more)" if num_more else ""
        raise InputError(
            f"{model} has weights whose shapes do not match its config.json: {name} is "
            f"{list(found)} and should be {list(expected)}{more}. Use the config.json and weights "
            "of the same model"
        )
    return BaseModel(
        num_weights=len(weights),
        has_head=comparison.has_head,
        unused=tuple(n for n in comparison.unused if not n.startswith((*LANGUAGE_HEADS, HEAD))),
    )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Weights by the model's own names; the head never counts as missing or mismatched."""

    num_expected: int
    missing: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Shape in the files and shape in the model."""
    unused: list[str]
    has_head: bool


def _compare(architecture: PretrainedConfig, weights: Mapping[str, Tensor]) -> _Comparison:
    model_class: type[PreTrainedModel] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[
        type(architecture)
    ]
    with _quiet():
        model, loading = model_class.from_pretrained(
            None,
            config=architecture,
            state_dict=dict(weights),
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = {
        name: (tuple(found), tuple(expected))
        for name, found, expected in loading["mismatched_keys"]
    }
    missing = set(loading["missing_keys"]) - mismatched.keys()
    return _Comparison(
        num_expected=sum(not name.startswith(HEAD) for name in model.state_dict()),
        missing=sorted(n for n in missing if not n.startswith(HEAD)),
        mismatched={n: both for n, both in mismatched.items() if not n.startswith(HEAD)},
        unused=sorted(loading["unexpected_keys"]),
        has_head=not any(name.startswith(HEAD) for name in missing),
    )


def _describe_missing(
    architecture: PretrainedConfig, weights: Mapping[str, Tensor], comparison: _Comparison
) -> str:
    missing, unused = comparison.missing, comparison.unused
    lacks = (
        f"lacks {len(missing)} of its {comparison.num_expected} weights ({list_some(missing)}), "
        "so training would start from random values"
    )
    if not weights:
        return f"{lacks}: its files are empty. Download it again"
    for wrapper, remedy in WRAPPERS.items():
        bare = {name.replace(wrapper, ""): weight for name, weight in weights.items()}
        if bare.keys() != weights.keys() and not _compare(architecture, bare).missing:
            return f"{lacks}: the names in its files contain '{wrapper}', added by {remedy}"
    if prefix := _find_prefix(missing, unused):
        return f"{lacks}: the names in its files start with '{prefix}'. Remove that prefix"
    instead = f", which have {list_some(unused)} instead" if unused else ""
    return f"{lacks}: they are not in its files{instead}. Download or save the complete model"


def _find_prefix(missing: Collection[str], unused: Collection[str]) -> str | None:
    """Return the prefix with which every missing name is among the unused ones; None if none."""
    first, names = min(missing), set(unused)
    prefixes = [name.removesuffix(first) for name in unused if name.endswith(first)]
    return next((p for p in prefixes if all(p + name in names for name in missing)), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' report of the comparison."""
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
