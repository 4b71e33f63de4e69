"""Base models in real folders: complete, incomplete, misnamed, misshapen and quantized."""

import json
from pathlib import Path

import pytest
import torch
from base_models import KINDS, found, make, refusal, rename
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
)

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.model.attention import PACKABLE
from rm_ray.model.build import build_reward_model
from rm_ray.publish.base_model import find_base, log_base_weights


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make(tmp_path / "llama", "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("family", sorted(PACKABLE))
def test_a_complete_model_of_every_family_passes_and_loads(tmp_path, tokenizer, family):
    """Whichever class saved it: transformers maps the names in the files."""
    for kind in KINDS:
        saved = make(tmp_path / kind, family, kind)
        config = ModelConfig(name_or_path=str(tmp_path / kind), head="new")
        base = find_base(config)
        assert base is not None
        has_head = kind == "SequenceClassification"  # of three labels
        assert base.replaced == (("score.weight",) if has_head else ())
        assert (base.head, base.unused) == (None, ())
        read = build_reward_model(config, tokenizer, seed=0).classifier.base_model.state_dict()
        for name, weight in saved.base_model.state_dict().items():
            assert torch.equal(read[name], weight), (kind, name)


def test_one_missing_expert_is_found_although_transformers_merges_experts(tmp_path):
    make(tmp_path, "mixtral")
    assert found(tmp_path) is not None
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if ".experts.3." in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    refusal(tmp_path)


@pytest.mark.parametrize(
    ("wrapper", "remedy"),
    [("_orig_mod.", "torch.compile"), ("module.", "DistributedDataParallel"),
     ("_fsdp_wrapped_module.", "FSDP"), ("base_model.model.", "PEFT"), ("actor.", "Remove that")],
)  # fmt: skip
def test_the_message_names_the_wrapper_that_renamed_the_weights(llama, wrapper, remedy):
    rename(llama, wrapper)
    text = refusal(llama)
    assert "lacks 20 of its 20 weights (model.embed_tokens.weight, " in text
    assert "and 17 more" in text
    assert f"'{wrapper}'" in text
    assert remedy in text


def test_a_folder_with_half_the_weights_is_refused(llama):
    weights = load_file(llama / "model.safetensors")
    half = {name: weight for name, weight in weights.items() if "layers.1" not in name}
    save_file(half, llama / "model.safetensors", {"format": "pt"})
    text = refusal(llama)
    assert "lacks 9 of its 20 weights (model.layers.1.input_layernorm.weight, " in text
    assert "not in its files" in text


def test_a_file_without_weights_is_refused(llama):
    save_file({}, llama / "model.safetensors", {"format": "pt"})
    assert "its files are empty" in refusal(llama)


def test_weights_of_the_wrong_shape_are_refused_with_both_shapes(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    text = refusal(llama)
    assert "model.layers.0.mlp.down_proj.weight is [32, 48] and should be [32, 64] (and 5" in text


def test_unused_weights_are_named(llama, caplog):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    base = found(llama)
    assert base is not None
    assert len(base.unused) == 9
    assert base.unused[0] == "model.layers.1.input_layernorm.weight"
    caplog.set_level("INFO", "rm_ray")
    log_base_weights(ModelConfig(name_or_path=str(llama)))
    assert "ignoring 9 weights" in caplog.text


def test_quantized_models_are_refused(llama):
    weights: dict[str, Tensor] = load_file(llama / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    assert f"is quantized: {name} as float8_e4m3fn" in refusal(llama)
    config = json.loads((llama / "config.json").read_text())
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (llama / "config.json").write_text(json.dumps(config | quantized))
    assert "is quantized (quantization_config in its config.json)" in refusal(llama)
