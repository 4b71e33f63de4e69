"""LoRA: adapters in a reward model's linear layers, by peft, and their initial values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_utils import set_zero3_state
from transformers.pytorch_utils import Conv1D

from rm_ray.config.sections.lora import ALL_LINEAR, LoraConfig
from rm_ray.errors import InputError
from rm_ray.model.architecture import find_decoder
from rm_ray.model.reward_model import RewardModel

ADAPTER = "default"
"""peft's name of the adapter, which is part of its parameters' names."""

HEAD = "score"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """The adapter of one linear layer."""

    layer: str
    """The layer's name in the classifier."""
    scaling: float
    is_transposed: bool
    """Whether the layer's weight is ``[in, out]``, as in GPT-2."""


def find_targets(classifier: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that get adapters, in the model's order.

    They are those of the decoder: no text passes through the layers beside it, as for images, so
    adapters there would get no gradients, which DDP refuses.

    Raises:
        InputError: a name matches no linear layer.
    """
    decoder = find_decoder(classifier) or classifier.base_model
    inside = {id(module) for module in decoder.modules()}
    linear = [
        name
        for name, module in classifier.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module) in inside
    ]
    if tuple(targets) == (ALL_LINEAR,):
        return linear
    unknown = [each for each in targets if not any(_matches(name, each) for name in linear)]
    if unknown:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise InputError(
            f"lora.targets names {', '.join(repr(each) for each in unknown)}, but the "
            f"{classifier.config.model_type} model has no such linear layer. Choose among {known}, "
            f"or '{ALL_LINEAR}'"
        )
    return [name for name in linear if any(_matches(name, each) for each in targets)]


def _matches(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def add_adapters(model: RewardModel, config: LoraConfig, *, seed: int) -> None:
    """Add adapters to the model, and train only them, the head and the parameter of ties.

    Adapters are float32. Their values depend on ``seed`` and the layer's name alone: the first
    matrix is uniform as in peft, the second zero, so that training starts from the base model.

    Raises:
        InputError: a target matches no linear layer.
    """
    from peft import inject_adapter_in_model  # takes seconds to import

    classifier = model.classifier
    assert not _lora_layers(classifier), "the classifier has adapters already"
    inject_adapter_in_model(peft_config(classifier, config), classifier)
    for name, layer in _lora_layers(classifier):
        first, second = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        first.weight = nn.Parameter(_draw(first.weight.shape, f"{seed}/{name}"))
        second.weight = nn.Parameter(torch.zeros(second.weight.shape))
        layer.cast_input_dtype_enabled = False  # autocast or DeepSpeed decides
    classifier.get_submodule(HEAD).requires_grad_(True)
    classifier.get_input_embeddings().requires_grad_(config.train_embeddings)


def _draw(shape: torch.Size, place: str) -> Tensor:
    """Return kaiming-uniform values for ``[rank, in]``, as peft draws them."""
    generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5), generator=generator)


def peft_config(classifier: PreTrainedModel, config: LoraConfig, **more: Any) -> Any:
    """Return peft's configuration of the adapters; ``classifier`` is without them.

    Raises:
        InputError: a target matches no linear layer.
    """
    from peft import LoraConfig as PeftLoraConfig

    targets = find_targets(classifier, config.targets)
    transposed = {isinstance(classifier.get_submodule(name), Conv1D) for name in targets}
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        target_modules=_shorten(classifier, targets),
        fan_in_fan_out=transposed == {True},
        **more,
    )


def _shorten(classifier: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Return the layers' last names if they match no other module, otherwise the full names."""
    short = sorted({name.rpartition(".")[2] for name in targets})
    matched = [
        name
        for name, module in classifier.named_modules()
        if any(_matches(name, each) for each in short)
    ]
    return short if matched == list(targets) else list(targets)


def find_adapters(classifier: PreTrainedModel) -> list[Adapter]:
    """Return the adapters that the classifier has, in its order."""
    return [
        Adapter(
            layer=name,
            scaling=float(layer.scaling[ADAPTER]),
            is_transposed=bool(layer.fan_in_fan_out),
        )
        for name, layer in _lora_layers(classifier)
    ]


def without_adapters(classifier: PreTrainedModel) -> PreTrainedModel:
    """Return a classifier of the same architecture without adapters, with weights on ``meta``.

    One rank alone may call it: where ZeRO-3 trains, transformers would shard every later model
    while it is built, unless that is already being done.
    """
    with torch.device("meta"), set_zero3_state():
        bare: PreTrainedModel = AutoModelForSequenceClassification.from_config(classifier.config)
    return bare


def _lora_layers(classifier: PreTrainedModel) -> list[tuple[str, Any]]:
    """Return peft's layers by the names of the layers that they wrap."""
    return [
        (name, module)
        for name, module in classifier.named_modules()
        if isinstance(module._modules.get("lora_A"), nn.ModuleDict)
    ]
