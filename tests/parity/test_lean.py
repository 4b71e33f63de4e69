"""A model read in parts starts and trains exactly like one that every rank reads whole."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from gloo_ranks import spawn
from ranks import FROZEN, Case, place_leanly
from reward_heads import head_weight, save
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.export import PREFIX

OFF = LoraConfig()

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip


def files(folder: Path, family: str, dtype: torch.dtype, *, spare: int = 1, **more: object) -> str:
    """Save a small language model, whose embeddings lack one for the pad token if spare is -1."""
    vocabulary = len(load_tokenizer("builtin")) + spare
    config = AutoConfig.for_model(family, vocab_size=vocabulary, **SIZES | more)
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(
        folder, max_shard_size="100kB"
    )
    return str(folder)


def old_pickle(folder: Path) -> str:
    """Save weights in the form that PyTorch wrote before its zip archives."""
    save(folder, {"score.weight": head_weight()}, "bin")
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return str(folder)


def adapter(folder: Path, base: str, **options: Any) -> str:
    """Save an adapter of a language model, whose values are no zeros."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if "modules_to_save" in options:  # whose own embeddings have more tokens than its base
        model.resize_token_embeddings(model.config.vocab_size + 2)
    config = peft.LoraConfig(r=2, target_modules="all-linear", **options)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("lean")
    half, full = torch.bfloat16, torch.float32
    drawn = folder / "drawn.json"
    drawn.write_text(json.dumps({"model_type": "llama", "vocab_size": 1000, **SIZES}))
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    kept = {"score.weight": head_weight()}
    bases = {
        name: files(folder / f"base-{name}", "llama", half, spare=spare)
        for name, spare in (("adapter", 1), ("adapter, resized", -1))
    }
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]}
    return {
        "adapter": adapter(folder / "adapter", bases["adapter"]),
        "adapter, resized": adapter(
            folder / "resized adapter", bases["adapter, resized"], use_dora=True
        ),
        "adapter, embeddings": adapter(folder / "embeddings", bases["adapter"], **saved),
        "half": files(folder / "half", "llama", half),
        "full": files(folder / "full", "qwen2", full),
        "resized": files(folder / "resized", "gemma", half, spare=-1),
        "neox": files(folder / "neox", "gpt_neox", full, spare=-1),
        "experts": files(folder / "experts", "mixtral", half, **experts),
        "kept": str(save(folder / "kept", kept, "sharded")),
        "bin": str(save(folder / "bin", kept, "bin")),
        "old": old_pickle(folder / "old"),
        "drawn": str(drawn),
    }


CASES = [
    (0, "float32", "half"), (0, "bfloat16", "resized"), (0, "float32", "old"),
    (1, "bfloat16", "kept"), (2, "float32", "bin"), (2, "bfloat16", "drawn"),
    (3, "float32", "half"), (3, "bfloat16", "full"), (3, "bfloat16", "resized"),
    (3, "float32", "neox"), (3, "bfloat16", "kept"), (3, "float32", "bin"), (3, "bfloat16", "old"),
    (3, "float32", "experts"), (0, "float32", "adapter"), (1, "bfloat16", "adapter, resized"),
    (3, "bfloat16", "adapter, embeddings"), (3, "bfloat16", "adapter, resized"),
]  # fmt: skip
OVER_NODES = [
    (3, "bfloat16", "half"), (3, "float32", "drawn"), (3, "bfloat16", "adapter, embeddings"),
    (3, "float32", "adapter, resized"),
]  # fmt: skip
"""Two ranks to a machine, with a second partition in each."""

LORA = LoraConfig(rank=2)
WITH_EMBEDDINGS = LoraConfig(rank=2, train_embeddings=True)
PARTIAL_CASES: list[tuple[int, Any, str, str, LoraConfig]] = [
    (0, "bfloat16", "half", "all", LORA), (0, "bfloat16", "resized", "last:1", OFF),
    (0, "bfloat16", "old", "head", OFF), (1, "bfloat16", "kept", "head", OFF),
    (2, "bfloat16", "neox", "last:1", OFF), (2, "float32", "drawn", "all", LORA),
    (3, "bfloat16", "half", "all", LORA), (3, "bfloat16", "resized", "all", WITH_EMBEDDINGS),
    (3, "float32", "experts", "all", LORA), (3, "bfloat16", "full", "last:1", OFF),
    (3, "float32", "drawn", "head", OFF), (0, "bfloat16", "adapter", "all", LORA),
    (3, "bfloat16", "adapter, resized", "last:1", OFF),
]  # fmt: skip
PARTIAL_OVER_NODES: list[tuple[int, Any, str, str, LoraConfig]] = [
    (0, "bfloat16", "resized", "all", LORA), (2, "bfloat16", "half", "last:1", OFF),
    (3, "bfloat16", "full", "all", LORA), (2, "bfloat16", "adapter, embeddings", "all", LORA),
    (3, "float32", "drawn", "last:2", OFF),
]  # fmt: skip
"""A part of the model is trained: adapters, the last layer, the head."""


@pytest.mark.parametrize(
    ("world_size", "tried"),
    [(1, CASES), pytest.param(3, CASES, marks=pytest.mark.slow), (4, OVER_NODES)],
)
def test_every_rank_starts_from_the_same_bits(names, world_size, tried, tmp_path: Path) -> None:
    cases = [
        Case(
            stage,
            dtype,
            ModelConfig(name_or_path=names[name], tokenizer="builtin"),
            layout="padded" if name == "experts" else "packed",
            frozen=FROZEN if name == "half" else (),
            secondary=world_size == 4,
        )
        for stage, dtype, name in tried
    ]
    require_equal(cases, world_size, tmp_path)


@pytest.mark.parametrize(
    ("world_size", "tried"),
    [pytest.param(3, PARTIAL_CASES, marks=pytest.mark.slow), (4, PARTIAL_OVER_NODES)],
)
def test_a_part_of_a_model_is_trained_on_the_same_bits(names, world_size, tried, tmp_path) -> None:
    cases = [
        Case(
            stage,
            dtype,
            ModelConfig(
                name_or_path=names[name],
                tokenizer="builtin",
                trainable=trainable,
                gradient_checkpointing=True,  # ranks must agree on what they gather, and when
            ),
            layout="padded" if name == "experts" else "packed",
            lora=lora,
            secondary=world_size == 4 and stage == 3,
        )
        for stage, dtype, name, trainable, lora in tried
    ]
    require_equal(cases, world_size, tmp_path)


def require_equal(cases: list[Case], world_size: int, tmp_path: Path) -> None:
    """Start every case both ways on real ranks, and compare all that they leave."""
    spawn(place_leanly, world_size, cases, tmp_path)
    for i, case in enumerate(cases):
        for rank in range(world_size):
            whole, lean = torch.load(tmp_path / f"lean-{i}-{rank}.pt", weights_only=False)
            for expected, found in zip(whole, lean, strict=True):
                if isinstance(expected, dict):
                    assert expected.keys() == found.keys(), case
                    for name, tensor in expected.items():
                        assert torch.equal(tensor, found[name]), (case, name)
                        assert tensor.dtype == found[name].dtype, (case, name)
                else:
                    assert expected == found, case
            if rank == 0:
                assert whole[0], case
                if case.lora.is_on:
                    require_exported(tmp_path / f"export-{i}", whole[-1], case)


def require_exported(folder: Path, weights: dict[str, torch.Tensor], case: Case) -> None:
    """Compare an export that was merged layer by layer with weights that were merged at once."""
    client = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    assert client.state_dict().keys() == expected.keys(), case
    for name, weight in client.state_dict().items():
        assert torch.equal(weight, expected[name].to(weight.dtype)), (case, name)
        assert weight.dtype == getattr(torch, case.dtype), (case, name)
