"""A base model that is an adapter: its weights are merged into those of its own base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError, first_line
from rm_ray.model.kept_head import LANGUAGE_HEADS
from rm_ray.model.tuning.lora import ADAPTER, HEAD
from rm_ray.model.weight_files import find_adapter_file, list_some, read_headers
from rm_ray.pretrained import PretrainedName, adapter_of, read_adapter_config

PREFIX = "base_model.model."
"""peft's prefix of every name in an adapter's files."""

HEAD_WEIGHT = f"{HEAD}.weight"

_MERGE = "apply it with peft's merge_and_unload(), save the model, and name its folder"


@dataclass(frozen=True, kw_only=True)
class AdapterWeights:
    """The weights in an adapter's file."""

    text: str
    """The adapter's name, for errors."""
    config: Any
    """peft's configuration."""
    weights: dict[str, Tensor]
    """By peft's names, without those of a head."""
    head: Tensor | None
    """``[1, hidden]``; None if the adapter has no head."""


def find_adapter(config: ModelConfig) -> AdapterWeights | None:
    """Return the adapter that ``model.name_or_path`` names; None if it names a whole model.

    Raises:
        InputError: as ``read_adapter``.
    """
    name = adapter_of(config)
    return None if name is None else read_adapter(name)


def read_adapter(name: PretrainedName) -> AdapterWeights:
    """Read an adapter from a folder or the Hub.

    Raises:
        InputError: a file is missing or broken, it is no LoRA, repeats layers, or adapts the head.
    """
    from peft import PeftConfig
    from safetensors.torch import load_file

    kind = (read_adapter_config(name) or {}).get("peft_type", "unknown (no peft_type)")
    if kind != "LORA":
        raise InputError(f"{name.text} is an adapter of type {kind}. Only LoRA is merged: {_MERGE}")
    with name.loading("a folder with adapter_config.json and adapter_model.safetensors"):
        config = PeftConfig.from_pretrained(name.place, revision=name.revision)
        file = find_adapter_file(name)
    if config.layer_replication:
        raise InputError(
            f"{name.text} repeats layers of its base model (layer_replication), whose config.json "
            f"does not describe the result: {_MERGE}"
        )
    try:
        read_headers([file])
    except InputError as error:
        raise InputError(f"{name.text}: {error}") from None
    is_safe = file.suffix == ".safetensors"
    found = load_file(file) if is_safe else torch.load(file, "cpu", weights_only=True)
    if any(key.startswith(f"{PREFIX}{HEAD}.lora_") for key in found):
        raise InputError(
            f"{name.text} adapts the head itself ({HEAD}.lora_*), so the head to keep exists only "
            f"in a merged model: {_MERGE}"
        )
    weights = {key.replace(".modules_to_save.", "."): value for key, value in found.items()}
    head = weights.pop(f"{PREFIX}{HEAD_WEIGHT}", None)
    return AdapterWeights(
        text=name.text,
        config=config,
        weights={
            key: value
            for key, value in weights.items()
            if not key.removeprefix(PREFIX).startswith(LANGUAGE_HEADS)
        },
        head=head,
    )


def merge_into(classifier: PreTrainedModel, adapter: AdapterWeights, *, dtype: torch.dtype) -> None:
    """Add an adapter to the classifier's weights, which should be float32; the head stays.

    They are cast to ``dtype`` then; buffers, such as rotary angles, are not. A classifier on
    ``meta`` only gets the shapes and dtypes of the merged one.

    Raises:
        InputError: it does not fit the classifier.
    """
    _fit_embeddings(classifier, adapter)
    if not classifier.get_input_embeddings().weight.is_meta:
        _merge(classifier, adapter)
    classifier.requires_grad_(True)
    for parameter in classifier.parameters():
        parameter.data = parameter.data.to(dtype)


def _merge(classifier: PreTrainedModel, adapter: AdapterWeights) -> None:
    from peft import PeftModel, set_peft_model_state_dict

    config = adapter.config
    others = {HEAD, "classifier", *(prefix.rstrip(".") for prefix in LANGUAGE_HEADS)}
    config.modules_to_save = [m for m in config.modules_to_save or () if m not in others] or None
    config.task_type, config.inference_mode = None, True
    try:
        model = PeftModel(classifier, config, adapter_name=ADAPTER)
        found = set_peft_model_state_dict(model, adapter.weights, adapter_name=ADAPTER)
        missing = [key for key in found.missing_keys if ".lora_" in key or "modules_to" in key]
        if gaps := [*missing, *found.unexpected_keys]:
            raise ValueError(f"its weights do not match the model's: {list_some(gaps)}")
        merged = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise InputError(f"{adapter.text} cannot be merged into its base model: {reason}") from None
    assert merged is classifier


def _fit_embeddings(classifier: PreTrainedModel, adapter: AdapterWeights) -> None:
    """Make room for the tokens that were added to an adapter's own embeddings."""
    embeddings = classifier.get_input_embeddings()
    name = next(n for n, module in classifier.named_modules() if module is embeddings)
    own = adapter.weights.get(f"{PREFIX}{name}.weight")
    if own is not None and len(own) > embeddings.num_embeddings:
        classifier.resize_token_embeddings(len(own), mean_resizing=False)
