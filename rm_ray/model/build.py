"""A base model -> the reward model to train: weights loaded or initialized, head kept or new."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.errors import InputError, first_line
from rm_ray.model.architecture import load_config
from rm_ray.model.attention import PACKED_ATTENTION
from rm_ray.model.heads import head_of, new_head
from rm_ray.model.kept_head import choose_head, find_head_weights, refuse_bias, require_head_files
from rm_ray.model.lean.base_loader import BaseLoader, classifier_of
from rm_ray.model.lean.outline import Sources
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.adapter_base import (
    HEAD_WEIGHT,
    AdapterWeights,
    find_adapter,
    merge_into,
)
from rm_ray.model.weight_files import (
    find_head_file,
    find_loaded_files,
    read_headers,
    read_weight,
)
from rm_ray.pretrained import PretrainedName, base_model


def build_reward_model(
    config: ResolvedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    layout: Layout = "packed",
    dtype: torch.dtype = torch.float32,
    lean: bool = False,
    shared: bool = True,
) -> RewardModel:
    """Build the model on the CPU in training mode, identical on every rank, for one layout.

    Weights from files are loaded in ``dtype``, except that a kept head is float32. New ones,
    including a new head, are drawn in float32, so the values are the same in every precision.

    A ``lean`` model has no values yet. Its parameters are on ``meta``, and ``sources`` says which
    part of which file they come from; the engine places them (``train/placement.py``), with the
    same values. What cannot be read in parts, is merged or drawn, rank 0 alone has if the model is
    ``shared``, and otherwise every rank.

    Raises:
        InputError: the model cannot be loaded, or is not a decoder with a ``score`` head; or
            ``model.head`` cannot be followed.
    """
    require_head_files(config)
    architecture, name = load_config(config, tokenizer), base_model(config)
    adapter = find_adapter(config)
    classes = architecture.architectures or ()
    loads = not shared or not dist.is_initialized() or dist.get_rank() == 0
    is_read = name.has_weights and adapter is None  # one is merged in float32, and rounded once
    loader = BaseLoader(
        name=name,
        architecture=architecture,
        dtype=_loading_dtype(architecture, tokenizer, dtype) if is_read else torch.float32,
        attention=PACKED_ATTENTION if layout == "packed" else config.attention,
        loads=loads,
        by_parts=adapter is None,
    )
    base = loader.load(seed=seed, lean=lean)
    classifier = base.classifier
    _require_head(name, classifier)
    if adapter is not None:
        merge_into(classifier, adapter, dtype=dtype)
    elif lean:
        _place_embeddings(classifier, base.sources, tokenizer, loads)
    _fit_to_tokenizer(classifier, tokenizer)
    size = classifier.score.in_features
    kept = _read_head(config, base.unused, adapter, hidden_size=size, architectures=classes)
    classifier.score = new_head(size, seed) if kept is None else head_of(kept.values)
    if config.gradient_checkpointing:
        _recompute(classifier, offload=config.activation_offloading)
    model = RewardModel(
        classifier,
        layout,
        kept_head=kept.name if kept else None,
        sources=base.sources if lean else None,
    )
    return model.train()  # loaded models are in evaluation mode, in which nothing is recomputed


def _recompute(classifier: PreTrainedModel, *, offload: bool) -> None:
    # Without dropout, recomputation draws no random numbers. Without a GPU, as where preflight
    # measures a run for another cluster, the layers' inputs are in host memory already.
    classifier.activation_checkpointing_enable(
        {"use_reentrant": False, "preserve_rng_state": False},
        offload=offload and torch.cuda.is_available(),
    )


def _place_embeddings(
    classifier: PreTrainedModel, sources: Sources, tokenizer: PreTrainedTokenizerBase, loads: bool
) -> None:
    """Read embeddings that an added pad token enlarges, on ranks that draw the new ones."""
    embeddings = classifier.get_input_embeddings()
    if embeddings.num_embeddings >= len(tokenizer):
        return
    source = sources.pop(embeddings.weight, None)
    if source is not None and loads:
        values = source.read().view(source.shape).to(embeddings.weight.dtype)
        embeddings.weight = nn.Parameter(values)


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
            sequence classifier for it; or it has random weights, and ``model.head`` is 'keep'.
    """
    require_head_files(config)
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
            return classifier_of(architecture, config.attention)
    except (ValueError, ImportError, TypeError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{model.text} cannot be built with model.attention '{config.attention}': "
            f"{first_line(error)}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class _HeadWeight:
    name: str
    """Its name in the files."""
    values: Tensor
    """``[1, hidden]``, in the files' dtype."""


def _read_head(
    config: ModelConfig,
    unused: Collection[str],
    adapter: AdapterWeights | None,
    *,
    hidden_size: int,
    architectures: Sequence[str],
) -> _HeadWeight | None:
    """Return the head to keep from the base model's files, or None to draw a new one.

    It is read from the files, not from the loaded classifier: that has rounded it, and has no
    place for one of another name.

    Raises:
        InputError: ``model.head`` cannot be followed.
    """
    name = base_model(config)
    if config.head == "new" or not name.has_weights:
        return None
    if adapter is not None and adapter.head is not None:
        return _HeadWeight(name=HEAD_WEIGHT, values=adapter.head)
    files, head_file = find_loaded_files(name), find_head_file(name)
    weights = read_headers(files)
    if head_file is not None:  # transformers does not read it
        apart = read_headers([head_file])
        files, weights, unused = [*files, head_file], weights | apart, {*unused, *apart}
    kept = choose_head(
        config.head,
        find_head_weights(weights, unused, hidden_size=hidden_size),
        hidden_size=hidden_size,
        architectures=architectures,
        model=name.text,
    )
    if kept is None:
        return None
    if kept.bias is not None:
        refuse_bias(kept.bias, read_weight(files, kept.bias), model=name.text)
    return _HeadWeight(name=kept.weight, values=read_weight(files, kept.weight))


def _require_head(name: PretrainedName, classifier: PreTrainedModel) -> None:
    if not isinstance(classifier._modules.get("score"), nn.Linear):
        raise InputError(
            f"{name.text} is a {classifier.config.model_type} model without a 'score' head on the "
            "last token. Choose a decoder such as Llama, Qwen or GPT-NeoX"
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
