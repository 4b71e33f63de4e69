"""What is trained, and the precision of the rest."""

import json
from dataclasses import replace

import families
import pytest
import torch
from families import FakeTokenizer, build, lay_out, some_groups
from tiny_models import tiny
from transformers import AutoConfig, AutoModelForSequenceClassification

from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model, check_architecture
from rm_ray.model.flops import ModelFlops
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.lora import find_targets
from rm_ray.model.tuning.trainable import (
    check_trainable,
    choose_trained,
    count_quantized,
    loads_in_dtype,
    outline_trained,
)

OFF = LoraConfig()


def trained(model: RewardModel) -> set[str]:
    names = (n for n, p in model.named_parameters() if p.requires_grad)
    return {name.removeprefix("classifier.") for name in names}


def choose(model: RewardModel, trainable: str, lora: LoraConfig = OFF, dtype=torch.float32) -> None:
    choose_trained(model, ModelConfig(trainable=trainable), lora, seed=0, dtype=dtype)


def test_everything_is_trained_unless_told_otherwise(tmp_path):
    model = build(tmp_path, "llama", "packed")
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    choose(model, "all", dtype=torch.bfloat16)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(("family", "norm"), [("llama", "norm"), ("gpt_neox", "final_layer_norm")])
def test_the_last_layers_are_trained_with_the_final_norm_and_the_head(tmp_path, family, norm):
    model = build(tmp_path, family, "packed")
    choose(model, "last:1")
    names = trained(model)
    assert {name for name in names if ".layers." not in name} >= {"score.weight"}
    assert any(f".{norm}." in name for name in names)
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"1"}
    assert not any("embed" in name for name in names)
    assert not model.has_frozen_backbone


def test_the_head_alone_reads_hidden_states_without_gradients(tmp_path):
    groups = some_groups([2, 3])
    expected = {}
    for layout in ("packed", "padded"):
        model = build(tmp_path, "llama", layout)
        rewards = model(lay_out(groups, layout))
        rewards.sum().backward()
        expected[layout] = (rewards.detach(), model.classifier.score.weight.grad)
    for layout in ("packed", "padded"):
        model = build(tmp_path, "llama", layout)
        choose(model, "head")
        assert trained(model) == {"score.weight"}
        states = []
        model.classifier.base_model.norm.register_forward_hook(
            lambda _, __, output, kept=states: kept.append(output)
        )
        rewards = model(lay_out(groups, layout))
        rewards.sum().backward()
        assert [state.requires_grad for state in states] == [False]
        assert torch.equal(rewards, expected[layout][0])
        assert torch.equal(model.classifier.score.weight.grad, expected[layout][1])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_gradients_stop_at_the_first_trained_layer(tmp_path, layout):
    """Recomputation leaves the frozen layers below alone too, and changes no gradient."""
    gradients = []
    for recomputes in (False, True):
        model = build(tmp_path, "llama", layout, gradient_checkpointing=recomputes)
        choose(model, "last:1")
        reached = []
        for layer in model.classifier.base_model.layers:
            layer.register_forward_pre_hook(
                lambda _, inputs, kept=reached: kept.append(inputs[0].requires_grad)
            )
        model(lay_out(some_groups([2, 3]), layout)).sum().backward()
        assert set(reached) == {False}
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[1][name], each) for name, each in gradients[0].items())


def test_frozen_weights_stay_in_the_dtype_of_the_products(tmp_path):
    model = build(tmp_path, "llama", "packed")
    choose(model, "all", LoraConfig(rank=2), torch.bfloat16)
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {
        (True, torch.float32), (False, torch.bfloat16),
    }  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize(
    ("trainable", "lora"),
    [
        ("all", OFF),
        ("last:1", OFF),
        ("head", OFF),
        ("all", LoraConfig(rank=3)),
        ("all", LoraConfig(rank=2, targets=(r"layers.1.self_attn.q_proj",))),
        ("all", LoraConfig(rank=2, train_embeddings=True)),
    ],
    ids=str,
)
def test_an_outline_has_the_parameters_of_the_model_that_trains(tmp_path, family, trainable, lora):
    if family == "gpt_neox" and "q_proj" in str(lora.targets):
        lora = LoraConfig(rank=2, targets=("attention.dense",))
    model = build(tmp_path, family, "packed")
    with torch.device("meta"):
        bare = type(model.classifier)(model.classifier.config)
    outline = outline_trained(bare, ModelConfig(trainable=trainable), lora)
    choose(model, trainable, lora)
    expected, found = (
        [(p.numel(), p.requires_grad) for p in each.parameters()]
        for each in (model.classifier, outline)
    )
    assert found == expected
    assert all(p.is_meta for p in outline.parameters())
    assert all(p.requires_grad for p in bare.parameters())


def test_a_backbone_is_loaded_in_its_dtype_if_none_of_it_is_trained():
    assert loads_in_dtype(ModelConfig(trainable="head"), OFF)
    assert loads_in_dtype(ModelConfig(), LoraConfig(rank=1))
    assert not loads_in_dtype(ModelConfig(), LoraConfig(rank=1, train_embeddings=True))
    assert not loads_in_dtype(ModelConfig(trainable="last:1"), OFF)
    assert not loads_in_dtype(ModelConfig(), OFF)


def test_a_model_without_layers_to_quantize_is_refused(tmp_path):
    config = ModelConfig(quantization="nf4")
    wide = families.describe("gpt_neox") | {"hidden_size": 64}
    sizes = {"model_type": "gpt2", "vocab_size": 200, "n_embd": 64, "n_layer": 1, "n_head": 2}
    for name, fields, count in (
        ("narrow", families.describe("llama"), 0),
        ("gpt2", sizes, 0),
        ("wide", wide, 2 * 64 * (3 * 64 + 64 + 48)),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(fields))
        named = replace(config, name_or_path=str(path))
        classifier = check_architecture(named, FakeTokenizer())
        assert count_quantized(classifier) == count
        if count:
            check_trainable(named, LoraConfig(rank=1), classifier)
            continue
        with pytest.raises(
            InputError,
            match=rf"must be 'none' with model.name_or_path '.*{name}\.json': only linear layers "
            r"\(nn\.Linear\) with a multiple of 64 inputs are quantized, and this",
        ):
            check_trainable(named, LoraConfig(rank=1), classifier)


def test_settings_that_do_not_fit_the_model_are_refused(tmp_path):
    classifier = build(tmp_path, "llama", "packed").classifier
    check_trainable(ModelConfig(trainable="last:2"), OFF, classifier)
    with pytest.raises(InputError, match=r"'last:3', but the model has 2 layers\. Choose 'last:2'"):
        check_trainable(ModelConfig(trainable="last:3"), OFF, classifier)
    with pytest.raises(InputError, match="'query'"):
        check_trainable(ModelConfig(), LoraConfig(rank=1, targets=("query",)), classifier)
    with pytest.raises(InputError, match=r"must be 'merged' with model\.name_or_path 'builtin'"):
        check_trainable(ModelConfig(), LoraConfig(rank=1, export="both"), classifier)


@pytest.mark.parametrize(
    ("family", "fields", "layer", "norm"),
    [
        (
            "opt",
            {"ffn_dim": 32, "word_embed_proj_dim": 32},
            "decoder.layers.1.",
            "final_layer_norm",
        ),
        ("gemma3", {}, "language_model.layers.1.", "language_model.norm"),
    ],
)
def test_layers_are_found_in_a_decoder_of_their_own(tmp_path, family, fields, layer, norm):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 99}
    text = {"text_config": {**sizes, "intermediate_size": 48, "head_dim": 16}}
    sizes = text if family == "gemma3" else {**sizes, **fields}
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(family, **sizes, num_labels=1)
        )
    model = RewardModel(classifier, "padded")
    for trainable, expected in (("head", {"score"}), ("last:1", {"score", layer, norm})):
        choose(model, trainable)
        names = trained(model)
        assert all(any(part in name for part in expected) for name in names)
        assert all(any(part in name for name in names) for part in expected)
    place = layer.removesuffix("layers.1.")
    targets = find_targets(classifier, ["all-linear"])
    assert targets and all(f".{place}layers." in name for name in targets)
    assert targets == find_targets(classifier, sorted({name.split(".")[-1] for name in targets}))
    assert len(ModelFlops.of(classifier).layers) == 2


def test_a_model_without_a_list_of_layers_names_the_setting(tmp_path):
    classifier = build(tmp_path, "llama", "packed").classifier
    classifier.base_model.layers = torch.nn.Sequential(*classifier.base_model.layers)
    check_trainable(ModelConfig(trainable="head"), OFF, classifier)
    with pytest.raises(
        InputError, match=r"^model.trainable 'last:N' cannot .*llama model has no li"
    ):
        check_trainable(ModelConfig(trainable="last:1"), OFF, classifier)


def test_a_rank_is_at_most_the_smaller_side_of_some_layer(tmp_path, caplog):
    classifier = build(tmp_path, "llama-grouped", "packed").classifier
    check_trainable(ModelConfig(), LoraConfig(rank=16), classifier)
    assert not caplog.records
    check_trainable(ModelConfig(), LoraConfig(rank=32), classifier)
    assert "adapters hold more weights than they need: k_proj 16, v_proj 16" in caplog.text
    with pytest.raises(InputError, match=r"lora\.rank is 33, .* above 32.* Choose 32 or less"):
        check_trainable(ModelConfig(), LoraConfig(rank=33), classifier)


def test_the_share_with_adapters_is_logged_and_joined_experts_have_none(tmp_path, caplog):
    caplog.set_level("INFO", "rm_ray")
    model = build(tmp_path, "llama", "packed")
    backbone = model.classifier.base_model
    total = sum(p.numel() for n, p in backbone.named_parameters() if "embed" not in n)
    covered = sum(p.numel() for n, p in backbone.named_parameters() if "q_proj" in n)
    choose(model, "all", LoraConfig(rank=2, targets=("q_proj",)))
    assert caplog.messages[-1] == (
        f"adapters cover {100 * covered / total:.0f}% of the backbone's weights, embeddings aside"
    )
    experts = {"num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    joined = tiny(tmp_path, model_type="mixtral", **experts)
    model = build_reward_model(joined, load_tokenizer("builtin"), seed=0, layout="padded")  # type: ignore[arg-type]
    choose(model, "all", LoraConfig(rank=2))
    assert "; joined experts (down_proj, gate_up_proj) have none" in caplog.messages[-1]
