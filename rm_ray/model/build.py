"""A base model -> the reward model to train: weights loaded or initialized, and a new head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.errors import InputError, first_line
from rm_ray.model.architecture import load_config
from rm_ray.model.attention import PACKED_ATTENTION
from rm_ray.model.heads import new_head
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.weight_files import list_some
from rm_ray.pretrained import PretrainedName, base_model


def build_reward_model(
    config: ResolvedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    layout: Layout = "packed",
    dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """Build the model on the CPU, identical on every rank, for batches of one layout.

    Call it before ZeRO shards anything: it initializes the head and resized embeddings.
    Weights from files are loaded in ``dtype``. New ones, including the head, are drawn in
    float32, so the values are the same in every precision.

    Raises:
        InputError: the model cannot be loaded, or is not a decoder with a ``score`` head.
    """
    architecture, name = load_config(config, tokenizer), base_model(config)
    attention = PACKED_ATTENTION if layout == "packed" else config.attention
    torch.manual_seed(seed)
    try:
        if name.has_weights:
            classifier, found = AutoModelForSequenceClassification.from_pretrained(
                name.place,
                config=architecture,
                revision=config.revision,
                dtype=_loading_dtype(architecture, tokenizer, dtype),
                attn_implementation=attention,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head of another size, which is replaced
                output_loading_info=True,
            )
            _require_weights(name, found)
        else:
            classifier = _from_config(architecture, attention)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{name.text}: {first_line(error)}") from None
    if not isinstance(classifier._modules.get("score"), nn.Linear):
        raise InputError(
            f"{name.text} is a {architecture.model_type} model without a 'score' head on the last "
            "token. Choose a decoder such as Llama, Qwen or GPT-NeoX"
        )
    _fit_to_tokenizer(classifier, tokenizer)
    classifier.score = new_head(classifier.score.in_features, seed)
    if config.gradient_checkpointing:
        # Without dropout, recomputation draws no random numbers.
        classifier.activation_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}
        )
    return RewardModel(classifier, layout)


def build_without_weights(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> RewardModel:
    """Build the model like ``build_reward_model``, with weights on ``meta``.

    Raises:
        InputError: as ``check_architecture``.
    """
    classifier = check_architecture(replace(config, attention="sdpa"), tokenizer)
    _fit_to_tokenizer(classifier, tokenizer)
    return RewardModel(classifier, "padded")


def check_architecture(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the classifier with weights on ``meta``.

    Raises:
        InputError: the model cannot be found or built, has no weights, or transformers has no
            sequence classifier for it.
    """
    architecture, model = load_config(config, tokenizer), base_model(config)
    if type(architecture) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"{model.text} is a {architecture.model_type} model, and transformers has no sequence "
            "classifier for it. Choose a decoder such as Llama or Qwen"
        )
    path = model.path
    if path.is_dir() and not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        raise InputError(
            f"{model.text} is a folder without weights (*.safetensors, *.bin). To start from "
            "random weights, pass its config.json"
        )
    try:
        with torch.device("meta"):
            return _from_config(architecture, config.attention)
    except (ValueError, ImportError, TypeError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{model.text} cannot be built with model.attention '{config.attention}': "
            f"{first_line(error)}"
        ) from None


def _from_config(architecture: PretrainedConfig, attention: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        architecture, dtype=torch.float32, attn_implementation=attention
    )
    return model


def _require_weights(name: PretrainedName, found: dict[str, Any]) -> None:
    """Check transformers' loading report: it must have loaded every weight except the head.

    Raises:
        InputError: a weight was not loaded, so training would start from random values.
    """
    mismatched = {weight for weight, *_ in found["mismatched_keys"]}
    missing = mismatched | set(found["missing_keys"])
    if gaps := {weight for weight in missing if not weight.startswith("score.")}:
        raise InputError(
            f"{name.text} has no matching weights for {list_some(gaps)}, so training would start "
            "from random values"
        )


def _loading_dtype(
    architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> torch.dtype:
    """Return the dtype to load weights in.

    An added embedding is drawn around the mean of the others. If the files are more precise than
    ``dtype``, rounding must come after that draw, or its values would differ.
    """
    is_resized = architecture.get_text_config().vocab_size < len(tokenizer)
    return torch.float32 if is_resized and architecture.dtype != dtype else dtype


def _fit_to_tokenizer(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add an embedding for an added pad token, or use a spare one; never remove any."""
    embeddings = classifier.get_input_embeddings()
    if embeddings.num_embeddings < len(tokenizer):
        has_values = embeddings.weight.device.type != "meta"
        classifier.resize_token_embeddings(len(tokenizer), mean_resizing=has_values)
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    classifier.config.pad_token_id = tokenizer.pad_token_id
