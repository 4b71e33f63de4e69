"""Exports of a part of a model, over its base; of real checkpoints: ``test_tuned_run.py``."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model
from rm_ray.model.lean.base_loader import BaseLoader
from rm_ray.publish.base_hash import hash_base
from rm_ray.publish.partial_export import export_onto_base


def test_trained_weights_replace_those_of_the_base(tmp_path: Path):
    config = replace(TrainConfig(), model=ModelConfig(trainable="head"))
    tokenizer = load_tokenizer("builtin")
    head = torch.arange(128.0)
    files = [tmp_path / "slices-00000.safetensors", tmp_path / "slices-00001.safetensors"]
    for file, start in zip(files, (0, 64), strict=True):
        save_file({f"weight/{start}/classifier.score.weight": head[start:][:64].clone()}, file)
    folder, hashed = tmp_path / "export", hash_base(config.model)
    export_onto_base(config, tokenizer, files, folder, base_hash=hashed)
    written = load_file(folder / "model.safetensors")
    base = build_reward_model(config.model, tokenizer, seed=config.run.seed).classifier  # type: ignore[arg-type]
    for name, weight in base.state_dict().items():
        expected = head[None] if name == "score.weight" else weight
        assert torch.equal(written[name], expected), name
    assert (folder / "tokenizer.json").exists()


def test_the_base_is_read_in_parts_into_files_of_the_size_asked_for(tmp_path: Path, monkeypatch):
    tokenizer = load_tokenizer("builtin")
    causal = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1,
            num_attention_heads=2, vocab_size=len(tokenizer),
        )
    )  # fmt: skip
    causal.save_pretrained(tmp_path / "base")
    model = ModelConfig(
        name_or_path=str(tmp_path / "base"),
        tokenizer="builtin",
        trainable="head",
        max_shard_size="1MB",
    )
    file = tmp_path / "slices-00000.safetensors"
    save_file({"weight/0/classifier.score.weight": torch.arange(256.0)}, file)
    monkeypatch.delattr(BaseLoader, "_load_whole")
    folder, hashed = tmp_path / "export", hash_base(model)
    config = replace(TrainConfig(), model=model)
    export_onto_base(config, tokenizer, [file], folder, base_hash=hashed)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    client = AutoModelForSequenceClassification.from_pretrained(folder)
    base = causal.base_model.state_dict()
    assert all(torch.equal(w, base[n]) for n, w in client.base_model.state_dict().items())
    assert client.score.weight[0].tolist() == list(range(256))


def test_a_changed_base_is_refused(tmp_path: Path):
    config = replace(TrainConfig(), model=ModelConfig(trainable="head"))
    with pytest.raises(InputError, match="'builtin' has changed since the run began"):
        export_onto_base(config, load_tokenizer("builtin"), [], tmp_path, base_hash="0" * 64)
