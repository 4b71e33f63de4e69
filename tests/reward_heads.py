"""Tiny reward models in folders, their heads under any name and in any form of checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rm_ray.config.sections.model import Head, ResolvedModel
from rm_ray.model.build import build_reward_model
from rm_ray.model.reward_model import RewardModel

HIDDEN = 64

BACKBONE: dict[str, Any] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 1024,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64,
}  # fmt: skip


def backbone() -> LlamaForCausalLM:
    """Return the same small language model each time."""
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**BACKBONE, tie_word_embeddings=False))


def head_weight() -> Tensor:
    """Return the same ``[1, hidden]`` each time, in float32."""
    return torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(2))


def save(folder: Path, head: dict[str, Tensor], storage: str = "whole") -> Path:
    """Save the backbone and a head's weights by name; return the folder.

    ``storage`` is 'whole', 'sharded', 'bin' or 'sharded bin', or 'apart' for a head in a file of
    its own.
    """
    backbone().save_pretrained(folder)
    whole = folder / "model.safetensors"
    weights = load_file(whole)
    if storage == "apart":
        save_file(head, folder / "value_head.safetensors", {"format": "pt"})
        return folder
    if storage == "whole":
        save_file(weights | head, whole, {"format": "pt"})
        return folder
    whole.unlink()
    if storage == "bin":
        torch.save(weights | head, folder / "pytorch_model.bin")
        return folder
    stem, end = ("model", "safetensors") if storage == "sharded" else ("pytorch_model", "bin")
    names = [f"{stem}-0000{i}-of-00002.{end}" for i in (1, 2)]
    for name, part in zip(names, (weights, head), strict=True):
        if end == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, {"format": "pt"})
    weight_map = dict.fromkeys(weights, names[0]) | dict.fromkeys(head, names[1])
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    return folder


def build(
    name: Path | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    head: Head = "auto",
    dtype: torch.dtype = torch.float32,
) -> RewardModel:
    """Build the reward model as a worker does."""
    config = ResolvedModel(name_or_path=str(name), tokenizer="builtin", head=head)
    return build_reward_model(config, tokenizer, seed=7, dtype=dtype)
