"""The export folder, which every Hugging Face client reads the same way."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from rm_ray.errors import InputError
from rm_ray.model.reward_model import RewardModel

CONFIG = "config.json"

PREFIX = "classifier."
"""Prefix of the classifier's parameters in a reward model."""


def export_model(
    model: RewardModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
) -> None:
    """Write weights, config and tokenizer for ``AutoModelForSequenceClassification``.

    ``weights`` are the reward model's full weights on the CPU.
    """
    state = {
        name.removeprefix(PREFIX): tensor.to(dtype).contiguous() for name, tensor in weights.items()
    }
    classifier = model.classifier
    classifier.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    _add_legacy_fields(folder / CONFIG, dtype)
    _fix_tokenizer_config(folder / "tokenizer_config.json", tokenizer.chat_template)


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
    read: Callable[[Mapping[str, torch.Size]], Mapping[str, Tensor]], skeleton: Path, folder: Path
) -> None:
    """Write a full export from a skeleton and the weights that ``read`` returns for its shapes."""
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(skeleton)
        )
    weights = read({name: p.shape for name, p in classifier.named_parameters()})
    classifier.save_pretrained(folder, state_dict=dict(weights))
    shutil.copytree(skeleton, folder, dirs_exist_ok=True)


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
