"""An adapter's folder; peft loads one in ``tests/unit/worker/test_tuned_run.py``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from base_models import SIZES, make
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig, ResolvedModel
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model
from rm_ray.model.tuning.adapter_folder import refuse_baseless, write_adapter
from rm_ray.model.tuning.lora import add_adapters
from rm_ray.model.tuning.trainable import choose_trained
from rm_ray.scoring.scorer import Scorer


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_the_folder_holds_adapters_head_and_trained_embeddings(tmp_path: Path, train_embeddings):
    make(tmp_path / "base", "gpt_neox")
    tokenizer = load_tokenizer("builtin")
    config = ResolvedModel(name_or_path=str(tmp_path / "base"), tokenizer="builtin")
    lora = LoraConfig(rank=2, targets=("dense",), train_embeddings=train_embeddings)
    model = build_reward_model(config, tokenizer, seed=0)
    add_adapters(model, lora, seed=0)
    folder = tmp_path / "adapter"
    write_adapter(
        model.classifier,
        model.classifier.state_dict().items(),
        tokenizer,
        folder,
        lora=lora,
        config=config,
        dtype=torch.bfloat16,
    )
    stored = load_file(folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    place = "base_model.model.gpt_neox"
    layers = [f"{place}.layers.{i}.attention.dense.lora_{m}.weight" for i in "01" for m in "AB"]
    whole = [f"{place}.embed_in.weight"] * train_embeddings
    assert stored.keys() == {*layers, *whole, "base_model.model.score.weight"}
    described = json.loads((folder / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(tmp_path / "base")
    assert described["target_modules"] == ["dense"]
    assert set(described["modules_to_save"]) == {"score", *["embed_in"] * train_embeddings}
    assert (folder / "tokenizer.json").exists()


def test_an_adapter_needs_a_base_that_others_can_load(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="whose weights are random"):
        refuse_baseless(ModelConfig())
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(InputError, match="which is an adapter"):
        refuse_baseless(ModelConfig(name_or_path=str(tmp_path)))
    refuse_baseless(ModelConfig(name_or_path="org/base"))


@torch.no_grad()
@pytest.mark.parametrize(("spare", "train_embeddings"), [(1, False), (-1, False), (-1, True)])
def test_the_lines_of_its_readme_load_score_and_merge_it(
    tmp_path, monkeypatch, spare, train_embeddings
):
    """With ``spare`` -1, the base lacks an embedding for the tokenizer's pad token."""
    tokenizer = load_tokenizer("builtin")
    tokenizer.add_special_tokens({"pad_token": "<|another|>"})
    sizes = {**SIZES, "vocab_size": len(tokenizer) + spare, "pad_token_id": None}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).save_pretrained(tmp_path / "base")
    config = ResolvedModel(name_or_path=str(tmp_path / "base"), tokenizer="builtin")
    lora = LoraConfig(rank=2, train_embeddings=train_embeddings)
    model = build_reward_model(config, tokenizer, seed=0, layout="padded")
    add_adapters(model, lora, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path / "adapter"
    write_adapter(
        model.classifier,
        model.classifier.state_dict().items(),
        tokenizer,
        folder,
        lora=lora,
        config=config,
        dtype=torch.float32,
    )
    loading, merging = (
        part.partition("```")[0]
        for part in (folder / "README.md").read_text().split("```python")[1:]
    )
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(loading, names)
    assert names["batch"]["attention_mask"].sum(1).unique().numel() == 2  # one is padded
    expected = [
        model.classifier(input_ids=ids[mask.bool()][None]).logits.item()
        for ids, mask in zip(
            *(names["batch"][key] for key in ("input_ids", "attention_mask")), strict=True
        )
    ]
    assert names["rewards"].tolist() == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3
    exec(merging, names)
    scorer = Scorer.load("merged", device=torch.device("cpu"), tokens_per_forward=1_000)
    ids = names["batch"]["input_ids"][1][names["batch"]["attention_mask"][1].bool()].tolist()
    assert scorer.score([[ids]])[0].tolist() == pytest.approx(expected[1:], abs=1e-5)
    with pytest.raises(
        InputError, match=r"--model '\.' is an adapter without the model .*merge_and"
    ):
        Scorer.load(".", device=torch.device("cpu"), tokens_per_forward=1)


@torch.no_grad()
def test_the_lines_of_its_readme_load_a_base_in_4_bits_as_it_was_trained(tmp_path, monkeypatch):
    """On the base's own weights, rewards would be others than those of training."""
    tokenizer = load_tokenizer("builtin")
    sizes = {**SIZES, "hidden_size": 64, "intermediate_size": 128, "vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).save_pretrained(tmp_path / "base")
    config = ResolvedModel(
        name_or_path=str(tmp_path / "base"), tokenizer="builtin", quantization="nf4"
    )
    lora = LoraConfig(rank=2)
    classifiers = {}
    for quantization in ("nf4", "none"):
        model = build_reward_model(config, tokenizer, seed=0, layout="padded")
        choose_trained(
            model, replace(config, quantization=quantization), lora, seed=0, dtype=torch.float32
        )
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        classifiers[quantization] = model.classifier
    folder, weights = tmp_path / "adapter", classifiers["nf4"].state_dict()
    write_adapter(
        classifiers["nf4"],
        weights.items(),
        tokenizer,
        folder,
        lora=lora,
        config=config,
        dtype=torch.float32,
    )
    text = (folder / "README.md").read_text()
    assert "merge_and_unload" not in text and "'merged'" in text
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(text.split("```python")[1].partition("```")[0], names)
    found = names["rewards"].tolist()
    in_bits, plain = (
        classifiers[each](**names["batch"]).logits[:, 0].tolist() for each in ("nf4", "none")
    )
    # The weights are the same; on some CPUs, bitsandbytes' own layer multiplies in bfloat16.
    assert found == pytest.approx(in_bits, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(found, plain, strict=True)) > 5e-3
