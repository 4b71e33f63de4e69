"""The check that a base model's files hold every trained weight, from their headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line
from rm_ray.model.kept_head import LANGUAGE_HEADS, KeptHead, choose_head, find_head_weights
from rm_ray.model.lean.outline import HEAD, compare
from rm_ray.model.weight_files import (
    choose_weight_files,
    list_some,
    refuse_pointer,
)
from rm_ray.pretrained import base_model

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
    head: KeptHead | None = None
    """The head that training starts from; None if it draws a new one."""
    replaced: tuple[str, ...] = ()
    """Names of head weights that the new head replaces."""
    unused: tuple[str, ...] = ()
    """Names of other weights that the reward model does not have, excluding language heads."""


def find_folder_files(folder: Path) -> list[Path]:
    """Return the weight files in a model's folder that training reads.

    Raises:
        InputError: the folder has no weights, or a file is missing or incomplete.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".model", ".jinja", ".txt") and file.is_file():
            refuse_pointer(file)
    return choose_weight_files(folder)


def check_base(
    config: ModelConfig, architecture: PretrainedConfig, weights: Mapping[str, Tensor]
) -> BaseModel:
    """Compare the weights in a model's files, without values, with those that training needs.

    transformers renames, converts and ties them exactly as when it loads the model.

    Raises:
        InputError: a weight is missing, has the wrong shape, or is quantized; or ``model.head``
            cannot be followed.
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
    size = comparison.hidden_size
    heads = find_head_weights(weights, comparison.unused, hidden_size=size)
    head = choose_head(
        config.head,
        heads,
        hidden_size=size,
        architectures=architecture.architectures or (),
        model=model,
    )
    return BaseModel(
        num_weights=len(weights),
        head=head,
        replaced=() if head else tuple(sorted(heads)),
        unused=tuple(
            name
            for name in comparison.unused
            if name not in heads and not name.startswith(LANGUAGE_HEADS)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Weights by the model's own names; the head never counts as missing or mismatched."""

    num_expected: int
    missing: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Shape in the files and shape in the model."""
    unused: list[str]
    hidden_size: int


def _compare(architecture: PretrainedConfig, weights: Mapping[str, Tensor]) -> _Comparison:
    model, loading = compare(architecture, weights)
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
        hidden_size=architecture.get_text_config().hidden_size,
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
