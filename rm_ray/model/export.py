"""The export folder, which every Hugging Face client reads the same way."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rm_ray.errors import InputError
from rm_ray.model.lean.outline import names_in_files
from rm_ray.model.lean.sharded_writer import MAX_SHARD_SIZE, ShardedWriter
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.lora import find_adapters, without_adapters
from rm_ray.model.tuning.merge import merge_adapters

CONFIG = "config.json"

PREFIX = "classifier."
"""Prefix of the classifier's parameters in a reward model."""


Part = tuple[str, int, Tensor]
"""A weight's name in the classifier, a first element, and the flat values from there on."""


def export_model(
    model: RewardModel,
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write weights, config and tokenizer for ``AutoModelForSequenceClassification``.

    ``weights`` are the reward model's full weights by name, of which one at a time is needed, or
    one layer's together where an adapter is merged into it. A file has at most ``max_shard_size``
    bytes, unless a single weight has more.
    """
    export_skeleton(model, tokenizer, folder, dtype=dtype)
    classifier = model.classifier
    parts: Iterable[tuple[str, Tensor]] = (
        (name.removeprefix(PREFIX), tensor)
        for name, tensor in (weights.items() if isinstance(weights, Mapping) else weights)
        if name.startswith(PREFIX)
    )
    if adapters := find_adapters(classifier):
        parts = merge_adapters(parts, adapters, dtype=dtype)
        classifier = without_adapters(classifier)
    whole = ((name, 0, tensor) for name, tensor in parts)
    _write_weights(classifier, whole, folder, dtype=dtype, max_shard_size=max_shard_size)


def export_skeleton(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype
) -> None:
    """Write an export without weights; the model's own may be on ``meta``."""
    config = copy.deepcopy(model.classifier.config)
    config.architectures = [type(model.classifier).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _add_legacy_fields(folder / CONFIG, dtype)
    _fix_tokenizer_config(folder / "tokenizer_config.json", tokenizer.chat_template)


def export_weights(
    read: Callable[[Mapping[str, torch.Size]], Iterable[Part]],
    skeleton: Path,
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write a full export from a skeleton and the parts that ``read`` returns for its shapes."""
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(skeleton)
        )
    folder.mkdir(parents=True, exist_ok=True)
    parts = read(shapes_of(classifier))
    _write_weights(classifier, parts, folder, dtype=dtype, max_shard_size=max_shard_size)
    shutil.copytree(skeleton, folder, dirs_exist_ok=True)


def shapes_of(classifier: PreTrainedModel) -> dict[str, torch.Size]:
    """Return the shapes of a classifier's stored tensors by name, also if ZeRO-3 shards them."""
    shapes = {
        name: getattr(parameter, "ds_shape", parameter.shape)
        for name, parameter in classifier.named_parameters()
    }
    return shapes | {name: buffer.shape for name, buffer in _stored_buffers(classifier).items()}


def _stored_buffers(classifier: PreTrainedModel) -> dict[str, Tensor]:
    """Return the buffers that a model's files have, such as a router's bias."""
    stored = classifier.state_dict().keys()
    return {name: buffer for name, buffer in classifier.named_buffers() if name in stored}


def _write_weights(
    classifier: PreTrainedModel,
    parts: Iterable[Part],
    folder: Path,
    *,
    dtype: torch.dtype,
    max_shard_size: int,
) -> None:
    """Write weights part by part; those of a model that transformers converts, all at once.

    Buffers keep their own dtype.
    """
    shapes = shapes_of(classifier)
    stored = names_in_files(classifier, shapes)
    if stored is not None:
        renamed = {name: shapes[own] for own, name in stored.items()}
        with ShardedWriter(folder, renamed, dtype=dtype, max_shard_size=max_shard_size) as writer:
            for name, first, values in parts:
                writer.write(stored[name], values, first=first)
        return
    state: dict[str, Tensor] = {}
    buffers = _stored_buffers(classifier)
    for name, first, values in parts:
        if name not in state:
            own = values.dtype if name in buffers else dtype
            state[name] = torch.empty(shapes.get(name, values.shape), dtype=own)
        state[name].view(-1)[first : first + values.numel()].copy_(values.reshape(-1))
    assert not (missing := shapes.keys() - state.keys()), missing
    with tempfile.TemporaryDirectory(dir=folder) as apart:  # its config.json is not wanted
        classifier.save_pretrained(apart, state_dict=state, max_shard_size=max_shard_size)
        for file in Path(apart).glob("model*"):
            file.rename(folder / file.name)


_TEXTS = (
    "It's 3.14, 2,718 and 1000000 -- isn't it?",
    "  two spaces,\ttab\n\n\nlines  ",
    "Héllo wörld, 你好，世界, здравствуй 🙂",
    "def f(x):\n    return x_1 + CamelCase[0]  # done",
)


def check_exportable(architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that clients of this model would load differently.

    For some families, ``AutoTokenizer`` rebuilds the tokenizer based on the model type.

    Raises:
        InputError: the rebuilt tokenizer returns different ids.
    """
    with tempfile.TemporaryDirectory(prefix="rm_ray-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        _fix_tokenizer_config(Path(folder) / "tokenizer_config.json", tokenizer.chat_template)
        architecture.save_pretrained(folder)
        read = AutoTokenizer.from_pretrained(folder)
    for text in _TEXTS:
        expected, got = tokenizer(text)["input_ids"], read(text)["input_ids"]
        if got != expected:
            raise InputError(
                f"model.tokenizer: for a '{architecture.model_type}' model, transformers reads "
                f"this tokenizer as {type(read).__name__}, which returns different ids for "
                f"{text!r}, so clients would score different tokens. Use the model's own tokenizer"
            )


def _add_legacy_fields(path: Path, dtype: torch.dtype) -> None:
    """Add the older field names that transformers 4 and servers built on it read."""
    config = json.loads(path.read_text())
    name = str(dtype).removeprefix("torch.")
    config |= {"dtype": name, "torch_dtype": name, "use_cache": True}
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        is_plain = scaling.get("rope_type", "default") == "default"
        config["rope_scaling"] = None if is_plain else scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
        if config["model_type"] == "gpt_neox":  # its older names differ
            config["rotary_emb_base"] = rope["rope_theta"]
            config["rotary_pct"] = rope["partial_rotary_factor"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _fix_tokenizer_config(path: Path, chat_template: str) -> None:
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["chat_template"] = chat_template
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
