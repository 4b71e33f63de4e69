import huggingface_hub
import pytest
import torch
from tiny_models import tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model, check_architecture


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tokenizer):
    first, again, other = (build_reward_model(ModelConfig(), tokenizer, seed=s) for s in (1, 1, 2))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(first.classifier.score.weight, other.classifier.score.weight)


def test_an_added_pad_token_gets_an_embedding(tmp_path, tokenizer):
    copy = tmp_path / "tokenizer"
    tokenizer.save_pretrained(copy)
    bare = AutoTokenizer.from_pretrained(copy)
    bare.pad_token = bare.eos_token
    bare.save_pretrained(copy)
    own = load_tokenizer(str(copy))
    assert own.pad_token_id == len(tokenizer)
    config = tiny(tmp_path, model_type="llama", vocab_size=len(tokenizer))
    model = build_reward_model(config, own, seed=0)
    assert model.classifier.get_input_embeddings().num_embeddings == len(tokenizer) + 1
    assert model.classifier.config.pad_token_id == len(tokenizer)


def test_a_pretrained_model_gets_an_embedding_for_an_added_pad_token(tmp_path, tokenizer):
    """Like Llama 3, whose tokenizer has no pad token."""
    config = tiny(tmp_path, model_type="llama", vocab_size=len(tokenizer))
    model = build_reward_model(config, tokenizer, seed=0)
    model.classifier.save_pretrained(tmp_path / "pretrained")
    bare = load_tokenizer("builtin")
    bare.add_special_tokens({"pad_token": "<|another|>"})
    pretrained = ModelConfig(name_or_path=str(tmp_path / "pretrained"))
    loaded = build_reward_model(pretrained, bare, seed=0).classifier
    embeddings = loaded.get_input_embeddings().weight
    assert embeddings.shape[0] == len(tokenizer) + 1
    before = model.classifier.get_input_embeddings().weight
    assert torch.equal(embeddings[:-1], before)
    assert loaded.config.pad_token_id == len(tokenizer)


def test_a_missing_model_is_named(tokenizer, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'no/such-model' cannot be loaded.*folder with config"):
        build_reward_model(ModelConfig(name_or_path="no/such-model"), tokenizer, seed=0)


@pytest.mark.parametrize("model_type", ["bert", "t5"])
def test_a_model_that_is_not_a_decoder_is_refused(tmp_path, tokenizer, model_type):
    config = tiny(tmp_path, model_type=model_type)
    with pytest.raises(InputError, match="decoder"):
        check_architecture(config, tokenizer)
        build_reward_model(config, tokenizer, seed=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spare", [5, -1], ids=["roomy", "resized"])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt_neox"])
def test_loading_in_bfloat16_equals_loading_in_float32_and_casting(
    tokenizer, tmp_path, stored, spare, family
):
    config = AutoConfig.for_model(
        family, hidden_size=64, intermediate_size=64, num_hidden_layers=1, head_dim=64,
        num_attention_heads=1, num_key_value_heads=1, vocab_size=len(tokenizer) + spare,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).to(stored).save_pretrained(tmp_path)
    files = ModelConfig(name_or_path=str(tmp_path), tokenizer="builtin")
    built = [
        build_reward_model(files, tokenizer, seed=3, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    before, now = (dict(model.named_parameters()) for model in built)
    for name, parameter in now.items():
        assert torch.equal(parameter.bfloat16(), before[name].bfloat16()), name
    # An added embedding is drawn before the others are rounded, unless no rounding is needed.
    is_read_in_float32 = spare < 0 and stored == torch.float32
    matrix = now["classifier.model.layers.0.mlp.up_proj.weight"] if family != "gpt_neox" else (
        now["classifier.gpt_neox.layers.0.mlp.dense_h_to_4h.weight"]
    )  # fmt: skip
    assert matrix.dtype == (torch.float32 if is_read_in_float32 else torch.bfloat16)
    assert now["classifier.score.weight"].dtype == torch.float32
    buffers = [dict(model.named_buffers()) for model in built]
    for name, buffer in buffers[1].items():
        assert torch.equal(buffer, buffers[0][name].to(buffer.dtype)), name
        assert buffer.dtype == torch.float32 or "embed_scale" in name  # cast where it is used


def test_random_weights_are_drawn_in_float32_whatever_is_asked(tokenizer, tmp_path):
    drawn = [
        build_reward_model(tiny(tmp_path, model_type="llama"), tokenizer, seed=3, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for one, other in zip(*(model.parameters() for model in drawn), strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)
