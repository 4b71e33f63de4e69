"""A base model's config -> its architecture with one label and no noise, and its sizes."""

from __future__ import annotations

import json

from torch import nn
from transformers import (
    AutoConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.attention import head_size
from rm_ray.pretrained import base_model


def load_config(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the architecture with one label, and without dropout and noise of routers.

    Raises:
        InputError: as ``read_architecture``.
    """
    architecture = read_architecture(config, vocab_size=len(tokenizer))
    architecture.num_labels = 1
    architecture.problem_type = "regression"
    architecture.use_cache = False
    architecture.pad_token_id = None  # set once the embeddings cover it
    if not base_model(config).has_weights:
        architecture.bos_token_id = tokenizer.bos_token_id
        architecture.eos_token_id = tokenizer.eos_token_id
    _disable_noise(architecture)
    return architecture


def read_architecture(config: ModelConfig, *, vocab_size: int = 1) -> PretrainedConfig:
    """Return a model's config as-is; ``vocab_size`` applies to the built-in model only.

    Raises:
        InputError: the model cannot be found or reached, needs custom code, or is quantized.
    """
    architecture = _read_config(config, vocab_size)
    if "quantization_config" in architecture.to_dict():
        raise InputError(
            f"{base_model(config).text} is quantized (quantization_config in its "
            "config.json). Choose the unquantized model"
        )
    return architecture


def _read_config(config: ModelConfig, vocab_size: int) -> PretrainedConfig:
    model = base_model(config)
    if model.kind == "builtin":
        return LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=2_048,
        )
    with model.loading(
        "a folder with config.json and weights, a config.json with model_type (random weights)"
    ):
        if model.kind == "config":
            fields = json.loads(model.path.read_text())
            return AutoConfig.for_model(**fields)
        return AutoConfig.from_pretrained(
            model.place, revision=model.revision, trust_remote_code=False
        )


def _disable_noise(architecture: PretrainedConfig) -> None:
    """Set every dropout rate (arXiv:1909.08593, p. 3) and the noise of routers to zero."""
    for name, value in architecture.to_dict().items():
        is_noise = "dropout" in name or "jitter" in name or name.endswith(("_pdrop", "_drop"))
        if is_noise and isinstance(value, float):
            setattr(architecture, name, 0.0)


def find_decoder(classifier: PreTrainedModel) -> nn.Module | None:
    """Return the module of a classifier that lists its layers; None if there is none.

    It is the backbone, or a decoder inside it: beside that of images, for example.
    """
    backbone = classifier.base_model
    for decoder in (backbone, backbone.get_decoder()):
        if any(isinstance(module, nn.ModuleList) for module in decoder.children()):
            found: nn.Module = decoder
            return found
    return None


QUANTIZED_BLOCK = 64
"""Weights that share a scale when they are quantized (arXiv:2305.14314, p. 5)."""


def is_quantizable(module: nn.Module) -> bool:
    """Return whether a linear layer's weight can be held in 4 bits: its rows are whole blocks.

    bitsandbytes 0.50.2 returns wrong values of some other widths on CPUs, and is slow with them on
    GPUs.
    """
    return isinstance(module, nn.Linear) and module.in_features % QUANTIZED_BLOCK == 0


def num_weights(parameter: nn.Parameter) -> int:
    """Return the number of weights in a parameter; one quantized to 4 bits has two in a byte."""
    return parameter.numel() * (1 if parameter.is_floating_point() else 2)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, excluding embeddings."""
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)


def attention_weight(classifier: PreTrainedModel) -> float:
    """Return the cost of one query-key pair over all layers, relative to a token's other work.

    A query-key pair costs 4 D FLOPs in a head of size D; a token costs 2 FLOPs per parameter,
    excluding embeddings.
    """
    config = classifier.config.get_text_config()
    width = head_size(config)
    products = 4 * config.num_hidden_layers * config.num_attention_heads * width
    return float(products / (2 * count_parameters(classifier)))
