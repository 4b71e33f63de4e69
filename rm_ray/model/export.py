"""The directory that every Hugging Face client reads alike."""

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
"""What the names of a reward model's parameters begin with, beside those of its classifier."""


def export_model(
    model: RewardModel,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: torch.dtype,
) -> None:
    """Write weights, config and tokenizer for ``AutoModelForSequenceClassification``.

    ``weights`` are those of the reward model, gathered whole on the CPU.
    """
    state = {
        name.removeprefix(PREFIX): tensor.to(dtype).contiguous() for name, tensor in weights.items()
    }
    classifier = model.classifier
    classifier.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    _mend_config(folder / CONFIG, dtype)
    _mend_tokenizer_config(folder / "tokenizer_config.json", tokenizer.chat_template)


def export_skeleton(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: torch.dtype
) -> None:
    """Write all that ``export_model`` does, except the weights; the model may have none."""
    config = copy.deepcopy(model.classifier.config)
    config.architectures = [type(model.classifier).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _mend_config(folder / CONFIG, dtype)
    _mend_tokenizer_config(folder / "tokenizer_config.json", tokenizer.chat_template)


def export_weights(
    read: Callable[[Mapping[str, torch.Size]], Mapping[str, Tensor]], skeleton: Path, folder: Path
) -> None:
    """Write a model from its skeleton and whatever ``read`` finds for the parameters' shapes."""
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(skeleton)
        )
    weights = read({name: p.shape for name, p in classifier.named_parameters()})
    classifier.save_pretrained(folder, state_dict=dict(weights))
    shutil.copytree(skeleton, folder, dirs_exist_ok=True)


_PROBES = (
    "It's 3.14, 2,718 and 1000000 -- isn't it?",
    "  two spaces,\ttab\n\n\nlines  ",
    "Héllo wörld, 你好，世界, здравствуй 🙂",
    "def f(x):\n    return x_1 + CamelCase[0]  # done",
)


def check_exportable(architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that clients would read otherwise beside this model.

    For some families transformers' ``AutoTokenizer`` rebuilds the tokenizer by the model's type.

    Raises:
        InputError: it gives other ids than the tokenizer itself.
    """
    with tempfile.TemporaryDirectory(prefix="rm_ray-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        _mend_tokenizer_config(Path(folder) / "tokenizer_config.json", tokenizer.chat_template)
        architecture.save_pretrained(folder)
        read = AutoTokenizer.from_pretrained(folder)
    for probe in _PROBES:
        expected, got = tokenizer(probe)["input_ids"], read(probe)["input_ids"]
        if got != expected:
            raise InputError(
                f"model.tokenizer: beside a '{architecture.model_type}' model transformers reads "
                f"this tokenizer as {type(read).__name__} and gives other ids for {probe!r}, so "
                "clients of the trained model would score other tokens; use the model's own "
                "tokenizer"
            )


def _mend_config(path: Path, dtype: torch.dtype) -> None:
    """Add what transformers 4 and the servers built on it read under older names."""
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
        if config["model_type"] == "gpt_neox":  # it has names of its own for both
            config["rotary_emb_base"] = rope["rope_theta"]
            config["rotary_pct"] = rope["partial_rotary_factor"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _mend_tokenizer_config(path: Path, chat_template: str) -> None:
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["chat_template"] = chat_template
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
