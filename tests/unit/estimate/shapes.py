"""Models by their config alone, and pairs by their lengths alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from rm_ray.config.train_config import ModelConfig
from rm_ray.data.cache.pair_tokens import PairLengths
from rm_ray.model.reward_model import check_architecture

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
"""The sizes of Llama 3 8B (arXiv:2407.21783, table 3)."""


class Vocabulary:
    """What building a model asks of a tokenizer."""

    bos_token_id = eos_token_id = None

    def __init__(self, size: int) -> None:
        self.size, self.pad_token_id = size, size - 1

    def __len__(self) -> int:
        return self.size


def write_config(path: Path, fields: dict[str, Any]) -> ModelConfig:
    path.write_text(json.dumps(fields))
    return ModelConfig(name_or_path=str(path))


def classifier_of(path: Path, fields: dict[str, Any]) -> PreTrainedModel:
    vocabulary: Any = Vocabulary(fields["vocab_size"])
    return check_architecture(write_config(path, fields), vocabulary)


def lengths_of(*pairs: tuple[int, int, int]) -> PairLengths:
    chosen, rejected, prefix = (
        np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True)
    )
    return PairLengths(chosen=chosen, rejected=rejected, prefix=prefix)
