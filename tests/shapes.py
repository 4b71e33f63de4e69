"""Models by their config alone, pairs by their lengths alone, and ways to train them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.estimate.activations import ForwardPass
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.model.build import check_architecture

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

ROW = ForwardPass(positions=16_384, queries=16_384, keys=20_000, masked=0, products=0)
"""Packed pairs on a GPU."""

ON_64_GPUS = MemorySetting(
    dtype="bfloat16", zero_stage=3, checkpointing=True, world_size=64, on_gpu=True,
    attention="varlen", liger=True,
)  # fmt: skip


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


def lengths_of(*pairs: tuple[int, int, int]) -> GroupLengths:
    chosen, rejected, prefix = (
        np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True)
    )
    return GroupLengths.of_pairs(chosen=chosen, rejected=rejected, prefix=prefix)


def meta_classifier(**fields: Any) -> PreTrainedModel:
    """Return a model without memory for its weights, of Llama's 8B but for the given sizes."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(**LLAMA_8B | {"num_labels": 1} | fields)
        )


def llama_8b(*, layers: int = 32) -> Architecture:
    return Architecture.of(meta_classifier(num_hidden_layers=layers))


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    heads, layers = draw(st.integers(1, 32)), draw(st.integers(3, 40))
    hidden, inside = 64 * heads, 64 * draw(st.integers(1, 200))
    matrices = [hidden * hidden] * 4 + [hidden * inside] * 3
    of_layer = [*matrices, hidden, hidden]
    embedding = hidden * draw(st.integers(1, 100_000))
    return Architecture(
        family="llama", num_layers=layers, hidden=hidden, intermediate=inside, num_heads=heads,
        query_width=hidden, key_width=hidden, parameters=(embedding, *of_layer * layers, hidden),
        layer_parameters=sum(of_layer), largest_in_layer=max(of_layer), is_trimmable=True,
    )  # fmt: skip


settings = st.builds(
    MemorySetting,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    zero_stage=st.integers(0, 3),
    checkpointing=st.booleans(),
    world_size=st.sampled_from([2, 3, 8, 64]),
    on_gpu=st.booleans(),
    layout=st.just("packed"),
    accumulates=st.booleans(),
)

rows = st.integers(10, 20_000).map(
    lambda size: ForwardPass(positions=size, queries=size, keys=size, masked=0, products=0)
)
