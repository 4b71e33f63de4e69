"""Which of a reward model's parameters are trained, and in which precision the others stay."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.architecture import (
    QUANTIZED_BLOCK,
    find_decoder,
    is_quantizable,
    num_weights,
)
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.adapter_folder import refuse_baseless
from rm_ray.model.tuning.lora import HEAD, add_adapters, find_targets
from rm_ray.pretrained import base_model

logger = logging.getLogger(__name__)


def check_trainable(model: ModelConfig, lora: LoraConfig, classifier: PreTrainedModel) -> None:
    """Check the settings against the classifier, whose weights may be on ``meta``.

    Raises:
        InputError: a target matches no layer, the rank is above that of all of them, more layers
            are to be trained than there are, the model has no layer to quantize, or an adapter is
            to be exported whose base model has no files.
    """
    if lora.is_on:
        _check_rank(lora.rank, classifier, find_targets(classifier, lora.targets))
    if model.quantization != "none" and not count_quantized(classifier):
        raise InputError(
            f"model.quantization must be 'none' with {base_model(model).text}: only linear layers "
            f"(nn.Linear) with a multiple of {QUANTIZED_BLOCK} inputs are quantized, and this "
            f"{classifier.config.model_type} model has none. Choose a decoder such as Llama or Qwen"
        )
    if lora.writes_adapter:
        refuse_baseless(model)
    _find_trained(model, classifier)


def _check_rank(rank: int, classifier: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuse a rank that no layer can have, and warn of layers that cannot have it.

    Raises:
        InputError: the rank is above the size of every layer with an adapter.
    """
    ranks = {name: min(classifier.get_submodule(name).weight.shape) for name in targets}
    most = max(ranks.values())
    if rank > most:
        raise InputError(
            f"lora.rank is {rank}, but no change of the model's linear layers has a rank above "
            f"{most}, the smaller side of the largest. Choose {most} or less"
        )
    small = {name.rpartition(".")[2]: most for name, most in ranks.items() if most < rank}
    if small:
        logger.warning(
            "lora.rank %d is above the most that some layers can have, so their adapters hold more "
            "weights than they need: %s. lora.targets can leave them out",
            rank,
            ", ".join(f"{name} {most}" for name, most in sorted(small.items())),
        )


def choose_trained(
    model: RewardModel, config: ModelConfig, lora: LoraConfig, *, seed: int, dtype: torch.dtype
) -> None:
    """Add adapters if LoRA is on, and freeze what is not trained; call it before ZeRO shards.

    Frozen weights are cast to ``dtype``, which halves their memory, or quantized. Matrices are
    multiplied in it anyway; under bfloat16 at ZeRO 0 the others, such as norms, would be float32 if
    they were trained. With everything trained, nothing changes. The values of a lean model are cast
    when they are read.

    Raises:
        InputError: as ``check_trainable``.
    """
    if config.quantization == "nf4":
        from rm_ray.model.tuning.quantization import quantize_backbone

        quantize_backbone(model, dtype=dtype)
    if lora.is_on:
        add_adapters(model, lora, seed=seed)
    elif config.trainable != "all":
        _freeze_the_rest(config, model.classifier)
        model.has_frozen_backbone = config.num_trained_layers == 0
    else:
        return
    # For reentrant checkpointing, transformers makes the embeddings' output require gradients:
    # frozen layers below the trained ones would be recomputed and passed backward for nothing.
    model.classifier.disable_input_require_grads()
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    numbers = [(num_weights(p), p.requires_grad) for p in model.parameters()]
    logger.info(
        "training %s of %s parameters",
        f"{sum(count for count, is_trained in numbers if is_trained):,}",
        f"{sum(count for count, _ in numbers):,}",
    )
    if lora.is_on:
        _log_coverage(model.classifier)


def _log_coverage(classifier: PreTrainedModel) -> None:
    """Log how much of the backbone has adapters, which joined experts never have."""
    backbone = dict(classifier.base_model.named_parameters())
    covered = sum(
        num_weights(p) for name, p in backbone.items() if name.endswith("base_layer.weight")
    )
    own = {id(p) for p in classifier.get_input_embeddings().parameters()}
    total = sum(
        num_weights(p) for n, p in backbone.items() if ".lora_" not in n and id(p) not in own
    )
    experts = {n.rpartition(".")[2] for n, p in backbone.items() if "experts" in n and p.ndim == 3}
    logger.info(
        "adapters cover %.0f%% of the backbone's weights, embeddings aside%s",
        100 * covered / total,
        f"; joined experts ({', '.join(sorted(experts))}) have none" if experts else "",
    )


def count_quantized(classifier: PreTrainedModel) -> int:
    """Return how many weights 'nf4' quantizes, of linear layers of the backbone."""
    modules: Iterable[Any] = classifier.base_model.modules()
    return sum(module.weight.numel() for module in modules if is_quantizable(module))


def outline_trained(
    classifier: PreTrainedModel, config: ModelConfig, lora: LoraConfig
) -> PreTrainedModel:
    """Return the classifier, or a copy of which exactly what would be trained requires gradients.

    ``classifier`` has its weights on ``meta``, and no adapters. The copy has them as two parameters
    of each linear layer, ``lora_A`` and ``lora_B``, in the order that ``choose_trained`` gives.

    Raises:
        InputError: as ``check_trainable``.
    """
    if config.trainable == "all" and not lora.is_on:
        return classifier
    outline = copy.deepcopy(classifier)
    if not lora.is_on:
        _freeze_the_rest(config, outline)
        return outline
    outline.requires_grad_(False)
    for name in find_targets(outline, lora.targets):
        layer = outline.get_submodule(name)
        num_out, num_in = layer.weight.shape
        for part, shape in {"lora_A": (lora.rank, num_in), "lora_B": (num_out, lora.rank)}.items():
            layer.register_parameter(part, nn.Parameter(torch.empty(shape, device="meta")))
    outline.get_submodule(HEAD).requires_grad_(True)
    outline.get_input_embeddings().requires_grad_(lora.train_embeddings)
    return outline


def loads_in_dtype(config: ModelConfig, lora: LoraConfig) -> bool:
    """Return whether the backbone is frozen whole, so that it need not be loaded in float32."""
    return config.trainable == "head" or (lora.is_on and not lora.train_embeddings)


def _freeze_the_rest(config: ModelConfig, classifier: PreTrainedModel) -> None:
    """Freeze what ``model.trainable`` does not name; with 'all', change nothing."""
    trained = _find_trained(config, classifier)
    if trained is not None:
        classifier.requires_grad_(False)
        for module in trained:
            module.requires_grad_(True)


def _find_trained(config: ModelConfig, classifier: PreTrainedModel) -> list[nn.Module] | None:
    """Return the modules that are trained; None for all.

    Raises:
        InputError: ``model.trainable`` names more layers than the model has, or it has no list.
    """
    number = config.num_trained_layers
    if number is None:
        return None
    head = classifier.get_submodule(HEAD)
    if number == 0:
        return [head]
    layers, behind = _find_layers(classifier)
    if number > len(layers):
        raise InputError(
            f"model.trainable is '{config.trainable}', but the model has {len(layers)} layers. "
            f"Choose 'last:{len(layers)}' or fewer, or 'all'"
        )
    return [*layers[-number:], *behind, head]


_BEHIND = ("final_layer_norm", "project_out")
"""Modules that follow the layers, although OPT lists them before."""


def _find_layers(classifier: PreTrainedModel) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return a decoder's layers, and the modules behind them.

    Raises:
        InputError: the model has no list of layers.
    """
    decoder = find_decoder(classifier)
    if decoder is None:
        raise InputError(
            f"model.trainable 'last:N' cannot be followed: this {classifier.config.model_type} "
            "model has no list of layers. Choose 'all' or 'head', or train with LoRA (lora.rank)"
        )
    named = list(decoder.named_children())
    first = next(i for i, (_, module) in enumerate(named) if isinstance(module, nn.ModuleList))
    behind = [
        module
        for i, (name, module) in enumerate(named)
        if (i > first or name in _BEHIND) and not isinstance(module, nn.Embedding)
    ]
    return list(named[first][1].children()), behind
