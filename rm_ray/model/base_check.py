"""Whether the files of a base model hold every weight that is trained, by their headers alone."""

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

from rm_ray.config.train_config import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.weight_files import (
    choose_weight_files,
    list_some,
    read_headers,
    refuse_pointer,
)

HEAD = "score."
"""What the names of the head's weights begin with; it is drawn anew, whatever a checkpoint has."""

LANGUAGE_HEADS = ("lm_head.", "embed_out.")
"""Heads that predict tokens, which a reward model has no use for."""

WRAPPERS = {
    "_orig_mod.": "torch.compile; save what it wraps, model._orig_mod",
    "module.": "DistributedDataParallel; save what it wraps, model.module",
    "_fsdp_wrapped_module.": "FSDP; save its full state dict",
    "_checkpoint_wrapped_module.": "a checkpoint wrapper; save what it wraps",
    "_forward_module.": "Lightning Fabric; save what it wraps",
    "base_model.model.": "PEFT; merge the adapter first, with merge_and_unload()",
}
"""What wrappers of a model put into the names of its weights, and how to save it without."""

TRAINABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """What the files of a base model hold."""

    num_weights: int
    has_head: bool
    """Whether there is a score head among them."""
    unused: tuple[str, ...] = ()
    """Names of weights that the reward model has no place for, language heads aside."""


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a model's folder as tensors without values, by their names in it.

    Raises:
        InputError: it has none, or a file is missing or not whole.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".model", ".jinja", ".txt") and file.is_file():
            refuse_pointer(file)
    return read_headers(choose_weight_files(folder))


def check_base(
    config: ModelConfig, architecture: PretrainedConfig, weights: Mapping[str, Tensor]
) -> BaseModel:
    """Compare weights without values, as files name them, with those that are trained.

    transformers itself renames, converts and ties them, as when it reads the model.

    Raises:
        InputError: some are missing, of another shape, or quantized.
    """
    what = f"model.name_or_path '{config.name_or_path}'"
    quantized = [
        name
        for name, weight in weights.items()
        if name.endswith(".weight") and weight.dtype not in TRAINABLE
    ]
    if quantized:
        dtype = str(weights[quantized[0]].dtype).removeprefix("torch.")
        raise InputError(
            f"{what} is quantized: {list_some(quantized)} as {dtype}; choose the model that it was "
            "made from, in float32, bfloat16 or float16"
        )
    try:
        found = _compare(architecture, weights)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what}: transformers cannot read its weights ({reason})") from None
    if found.missing:
        raise InputError(f"{what} {_describe_missing(architecture, weights, found)}")
    if found.mismatched:
        name, (there, wanted) = next(iter(sorted(found.mismatched.items())))
        more = f" (and {len(found.mismatched) - 1} more)" if len(found.mismatched) > 1 else ""
        raise InputError(
            f"{what} has weights of other shapes than its config.json says: {name} is "
            f"{list(there)} and should be {list(wanted)}{more}; take config.json and weights of "
            "one model"
        )
    return BaseModel(
        num_weights=len(weights),
        has_head=found.has_head,
        unused=tuple(n for n in found.unused if not n.startswith((*LANGUAGE_HEADS, HEAD))),
    )


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Weights by the model's own names; the head is neither missing nor mismatched."""

    num_wanted: int
    missing: list[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Shapes in the files and in the model."""
    unused: list[str]
    has_head: bool


def _compare(architecture: PretrainedConfig, weights: Mapping[str, Tensor]) -> _Comparison:
    model_class: type[PreTrainedModel] = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[
        type(architecture)
    ]
    with _quiet():
        model, told = model_class.from_pretrained(
            None,
            config=architecture,
            state_dict=dict(weights),
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = {
        name: (tuple(there), tuple(wanted)) for name, there, wanted in told["mismatched_keys"]
    }
    lacking = set(told["missing_keys"])
    return _Comparison(
        num_wanted=sum(not name.startswith(HEAD) for name in model.state_dict()),
        missing=sorted(n for n in lacking - mismatched.keys() if not n.startswith(HEAD)),
        mismatched={n: both for n, both in mismatched.items() if not n.startswith(HEAD)},
        unused=sorted(told["unexpected_keys"]),
        has_head=not any(name.startswith(HEAD) for name in lacking - mismatched.keys()),
    )


def _describe_missing(
    architecture: PretrainedConfig, weights: Mapping[str, Tensor], found: _Comparison
) -> str:
    lacks = (
        f"lacks {len(found.missing)} of its {found.num_wanted} weights "
        f"({list_some(found.missing)}), which training would begin with at random"
    )
    if not weights:
        return f"{lacks}: its files are empty; download it again"
    for wrapper, remedy in WRAPPERS.items():
        bare = {name.replace(wrapper, ""): weight for name, weight in weights.items()}
        if bare.keys() != weights.keys() and not _compare(architecture, bare).missing:
            return f"{lacks}: its files name them with '{wrapper}', as in {remedy}"
    if prefix := _find_prefix(found.missing, found.unused):
        return f"{lacks}: its files name them with '{prefix}' before that; rename them"
    has = f"; they have {list_some(found.unused)} instead" if found.unused else ""
    return f"{lacks}: they are not in its files{has}. Download it again, or save all of it"


def _find_prefix(missing: Collection[str], unused: Collection[str]) -> str | None:
    """Return what stands before every missing name among the names that are not used, if so."""
    first = min(missing)
    prefixes = [name.removesuffix(first) for name in unused if name.endswith(first)]
    there = set(unused)
    return next((p for p in prefixes if all(p + name in there for name in missing)), None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting what is compared here."""
    verbosity = transformers_logging.get_verbosity()
    shows = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows:
            transformers_logging.enable_progress_bar()
