"""Predicted activation bytes against the bytes that autograd saves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_shapes import of_shapes
from shapes import Vocabulary, classifier_of, lengths_of, write_config
from torch import Tensor

from rm_ray.batches.collate import Collator, map_tensors, unlabelled
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.lora import ALL_LINEAR, LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens
from rm_ray.estimate.activations import (
    Activations,
    Arithmetic,
    Attention,
    ForwardPass,
    activations_of,
)
from rm_ray.estimate.architecture import Architecture
from rm_ray.estimate.families import FAMILIES
from rm_ray.estimate.memory import arithmetic_of
from rm_ray.estimate.memory_setting import MemorySetting
from rm_ray.model.attention import PACKABLE
from rm_ray.model.build import build_reward_model
from rm_ray.model.tuning.trainable import choose_trained, outline_trained

VOCABULARY, LAYERS = 500, 3

ARITHMETIC = {
    "float32": Arithmetic(stream=4, product=4),
    "bfloat16": Arithmetic(stream=2, product=2),
    "autocast": Arithmetic(stream=4, product=2),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the model to train."""

    trainable: str = "all"
    rank: int = 0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    embeddings: bool = False

    @property
    def settings(self) -> tuple[ModelConfig, LoraConfig]:
        lora = LoraConfig(rank=self.rank, targets=self.targets, train_embeddings=self.embeddings)
        return ModelConfig(trainable=self.trainable), lora


UNEVEN = lengths_of((90, 61, 30), (90, 90, 30), (75, 90, 0), (41, 44, 40), (90, 50, 49))
EVEN = lengths_of(*[(80, 80, 30)] * 4)
OTHER_SIZES = of_shapes([(30, 60), (40, 50, 20, 35), (25, 9, 8, 7, 6, 50), (0, 70, 64)]).lengths

FIELDS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "olmo3": {"layer_types": ["full_attention"] * LAYERS},
    "gpt_neox": {"num_key_value_heads": None, "head_dim": None},
}


def fields(family: str) -> dict[str, Any]:
    sizes = {
        "model_type": family, "vocab_size": VOCABULARY, "hidden_size": 128,
        "intermediate_size": 320, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "eos_token_id": 1, "bos_token_id": 1,
    }  # fmt: skip
    known = sizes | FIELDS.get(family, {})
    return {name: value for name, value in known.items() if value is not None or name in FIELDS}


@contextmanager
def count_saved_bytes(known: set[int]) -> Iterator[list[int]]:
    """Count the bytes of each storage that autograd saves, except the known ones."""
    total, kept = [0], {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known | kept.keys():
            kept[storage.data_ptr()] = storage  # keep it alive so its address is not reused
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        yield total


def measure(
    folder: Path,
    family: str,
    lengths: GroupLengths,
    arithmetic: str,
    layout: Layout,
    part: Part | None = None,
    **options: Any,
) -> int:
    """Return the bytes that a forward pass saves, without weights and the batch itself."""
    vocabulary: Any = Vocabulary(VOCABULARY)
    config = write_config(folder / "model.json", fields(family))
    model = build_reward_model(config, vocabulary, seed=0, layout=layout).train()
    if options:
        model.classifier.set_attn_implementation(options["attention"])
    if part is not None:
        dtype = torch.float32 if arithmetic == "float32" else torch.bfloat16
        choose_trained(model, *part.settings, seed=0, dtype=dtype)
    if arithmetic == "bfloat16":
        model.to(torch.bfloat16)
    tokens = GroupTokens(tokens=np.ones(lengths.distinct.sum(), dtype=np.int32), lengths=lengths)
    collator = Collator(layout=layout, kernel="shared", pad_token_id=0, device=torch.device("cpu"))
    batch = collator.arrange(tokens, unlabelled(tokens))
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    map_tensors(batch, lambda tensor: known.add(tensor.untyped_storage().data_ptr()))
    with count_saved_bytes(known) as total:
        is_cast = arithmetic == "autocast"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_cast):
            rewards = model(batch)
        rewards.sum()
    return total[0]


def predict(
    folder: Path,
    family: str,
    lengths: GroupLengths,
    arithmetic: str,
    layout: Layout,
    attention: Attention,
    part: Part | None = None,
) -> tuple[Architecture, Activations]:
    classifier = classifier_of(folder / "model.json", fields(family))
    if part is not None:
        classifier = outline_trained(classifier, *part.settings)
    architecture = Architecture.of(classifier)
    row = ForwardPass.of(lengths, layout=layout, attention=attention)
    size = ARITHMETIC[arithmetic]
    if part is not None:
        stage = 0 if arithmetic == "autocast" else 1
        dtype = "float32" if arithmetic == "float32" else "bfloat16"
        size = arithmetic_of(architecture, MemorySetting(dtype=dtype, zero_stage=stage))
    return architecture, activations_of(architecture, row, size, layout=layout, attention=attention)


def weight_copies(architecture: Architecture, arithmetic: str) -> int:
    """Return the bytes of the weights' bfloat16 copies that the graph keeps under autocast."""
    tuning = architecture.tuning
    if arithmetic != "autocast":
        return 0
    if tuning is None:
        return 2 * architecture.num_in_linears
    embedding = architecture.parameters[0] if tuning.trains_embeddings else 0
    return 2 * (sum(tuning.trained) - embedding)


def test_every_packable_family_has_a_memory_model():
    assert FAMILIES.keys() == PACKABLE


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_pairs_save_the_predicted_bytes(tmp_path, family, arithmetic):
    architecture, predicted = predict(tmp_path, family, UNEVEN, arithmetic, "packed", "grouped")
    expected = predicted.held(checkpointing=False) + weight_copies(architecture, arithmetic)
    measured = measure(tmp_path, family, UNEVEN, arithmetic, "packed")
    assert expected == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_packed_groups_of_other_sizes_save_the_predicted_bytes(tmp_path, family):
    _, predicted = predict(tmp_path, family, OTHER_SIZES, "float32", "packed", "grouped")
    measured = measure(tmp_path, family, OTHER_SIZES, "float32", "packed")
    assert predicted.held(checkpointing=False) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"olmo3"}))
def test_even_padded_pairs_save_the_predicted_bytes(tmp_path, family):
    _, predicted = predict(tmp_path, family, EVEN, "float32", "padded", "sdpa")
    measured = measure(tmp_path, family, EVEN, "float32", "padded")
    assert predicted.held(checkpointing=False) == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_uneven_padded_pairs_also_save_their_mask(tmp_path, attention, arithmetic):
    _, predicted = predict(tmp_path, "llama", UNEVEN, arithmetic, "padded", attention)
    measured = measure(tmp_path, "llama", UNEVEN, arithmetic, "padded", attention=attention)
    assert predicted.held(checkpointing=False) == pytest.approx(measured, rel=0.02)


LORA = Part(rank=8)


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_save_the_predicted_bytes(tmp_path, family, arithmetic):
    architecture, predicted = predict(
        tmp_path, family, UNEVEN, arithmetic, "packed", "grouped", LORA
    )
    expected = predicted.held(checkpointing=False) + weight_copies(architecture, arithmetic)
    measured = measure(tmp_path, family, UNEVEN, arithmetic, "packed", LORA)
    assert expected == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize(
    "part",
    [
        Part(rank=64),
        Part(rank=4, targets=("q_proj", "v_proj")),
        Part(rank=4, targets=("v_proj", "o_proj", "down_proj")),
        Part(rank=4, targets=("gate_proj",), embeddings=True),
        Part(trainable="last:2"),
        Part(trainable="last:1"),
        Part(trainable="head"),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_a_part_of_a_model_saves_the_predicted_bytes(tmp_path, part, layout, arithmetic):
    attention = "grouped" if layout == "packed" else "sdpa"
    lengths = UNEVEN if layout == "packed" else EVEN
    architecture, predicted = predict(
        tmp_path, "llama", lengths, arithmetic, layout, attention, part
    )
    expected = predicted.held(checkpointing=False) + weight_copies(architecture, arithmetic)
    measured = measure(tmp_path, "llama", lengths, arithmetic, layout, part)
    # What a trimmed last layer saves for each response is left out.
    assert expected == pytest.approx(measured, rel=0.02, abs=120_000)
