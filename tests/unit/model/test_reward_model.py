import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from tables import builtin_table
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from rm_ray.batches.padding import PaddedPairs, pad_pairs
from rm_ray.config.train_config import ModelConfig
from rm_ray.data.cache.token_table import TokenTable
from rm_ray.data.tokens.tokenization import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.reward_model import (
    Float32Linear,
    apply_liger,
    build_reward_model,
    check_architecture,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TokenTable:
    return builtin_table(tmp_path_factory.mktemp("pairs") / "table", 7)[0]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("builtin")


def padded(table: TokenTable, pairs: list[int], pad_token_id: int) -> PaddedPairs:
    return pad_pairs(
        table.gather(np.array(pairs)),
        margins=table.margin[pairs],
        weights=torch.ones(len(pairs)).numpy(),
        pad_token_id=pad_token_id,
    )


def tiny(folder: Path, **fields: object) -> ModelConfig:
    path = folder / "model.json"
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 1024}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 1}
    path.write_text(json.dumps(sizes | shape | fields))
    return ModelConfig(name_or_path=str(path), tokenizer="builtin")


def test_a_reward_does_not_depend_on_what_it_is_batched_with(table, tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0, layout="padded")
    pad = tokenizer.pad_token_id
    together = model(padded(table, list(range(7)), pad)).reshape(2, 7)
    alone = torch.stack([model(padded(table, [p], pad)) for p in range(7)], dim=1)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_rewards_do_not_depend_on_what_the_padding_is(table, tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0, layout="padded")
    rewards = [model(padded(table, list(range(7)), pad)) for pad in (tokenizer.pad_token_id, 77)]
    assert torch.equal(*rewards)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tokenizer):
    first, again, other = (build_reward_model(ModelConfig(), tokenizer, seed=s) for s in (1, 1, 2))
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(first.classifier.score.weight, other.classifier.score.weight)


def test_a_gpt_neox_model_has_no_dropout_left(tmp_path, tokenizer):
    config = tiny(tmp_path, model_type="gpt_neox", hidden_dropout=0.3, attention_dropout=0.2,
                  classifier_dropout=0.1)  # fmt: skip
    model = build_reward_model(config, tokenizer, seed=0).train()
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert not any(rates)
    assert model.classifier.config.attention_dropout == 0
    assert model.classifier.config.hidden_dropout == 0


def test_gradient_checkpointing_changes_no_gradient(table, tokenizer):
    gradients = []
    for checkpointing in (False, True):
        config = ModelConfig(gradient_checkpointing=checkpointing)
        model = build_reward_model(config, tokenizer, seed=0, layout="padded").train()
        model(padded(table, [0, 1, 2], tokenizer.pad_token_id)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert build_reward_model(
        config, tokenizer, seed=0, layout="padded"
    ).classifier.is_activation_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-6)


def test_eager_attention_gives_the_rewards_of_sdpa(table, tokenizer):
    rewards = [
        build_reward_model(ModelConfig(attention=attention), tokenizer, seed=0, layout="padded")(
            padded(table, [0, 1], tokenizer.pad_token_id)
        )
        for attention in ("sdpa", "eager")
    ]
    torch.testing.assert_close(*rewards, rtol=0, atol=1e-5)


def test_the_head_multiplies_in_float32_under_autocast_and_with_bfloat16_weights():
    head = Float32Linear(8, 1, bias=False)
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = hidden.float() @ head.weight.float().T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden), expected)
    head.bfloat16()
    got = head(hidden)
    assert got.dtype == torch.float32
    assert torch.equal(got, hidden.float() @ head.weight.float().T)


def test_embeddings_grow_by_an_added_pad_token(tmp_path, tokenizer):
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
    """As Llama-3 does, whose tokenizer has no pad token."""
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


def test_liger_is_refused_without_a_gpu_and_left_out_by_auto(tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0)
    assert not apply_liger(model, "auto", on_gpu=False)
    assert not apply_liger(model, "off", on_gpu=True)
    with pytest.raises(InputError, match="need a GPU"):
        apply_liger(model, "on", on_gpu=False)


def test_a_model_whose_last_layer_is_projected_is_scored_by_its_projection(
    tmp_path, table, tokenizer
):
    """As OPT-350m, whose hidden states are wider than what its head reads."""
    config = tiny(
        tmp_path, model_type="opt", word_embed_proj_dim=32, ffn_dim=64, do_layer_norm_before=False
    )
    model = build_reward_model(config, tokenizer, seed=0, layout="padded")
    assert model.classifier.score.weight.shape == (1, 32)
    batch = padded(table, [0, 1, 2], tokenizer.pad_token_id)
    theirs = model.classifier(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    torch.testing.assert_close(model(batch), theirs.logits[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spare", [5, -1], ids=["roomy", "resized"])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt_neox"])
def test_files_read_in_bfloat16_give_what_is_read_in_float32_and_cast(
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
    # A row is drawn before what the others hold is rounded, or there is nothing to round.
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
