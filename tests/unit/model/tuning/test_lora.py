"""Adapters in a reward model: where they are, how they begin, and that layouts do not matter."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import (
    FAMILIES,
    build,
    build_in_float64,
    check_equal,
    lay_out,
    rewards_and_gradients,
    some_groups,
)

from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.errors import InputError
from rm_ray.model.reward_model import RewardModel
from rm_ray.model.tuning.lora import add_adapters, find_adapters, find_targets

LORA = LoraConfig(rank=2, alpha=4.0)
SIZES = [2, 1, 3, 2, 5]


def wake(model: RewardModel) -> None:
    """Give the second matrices values, as training does."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def adapted(
    folder: Path, family: str, layout: Layout, lora: LoraConfig = LORA, **options: Any
) -> Any:
    """Return a family's model with adapters, in float64."""
    model = build_in_float64(folder, family, layout, **options)
    add_adapters(model, lora, seed=1)
    wake(model)
    return model.double()


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_groups_give_the_rewards_and_gradients_of_padded_ones(tmp_path, name):
    """Also where the last layer is trimmed: every linear layer of it has an adapter."""
    groups = some_groups(SIZES)
    results = [
        rewards_and_gradients(adapted(tmp_path, name, layout), lay_out(groups, layout))
        for layout in ("packed", "padded")
    ]
    check_equal(*results)
    trained = {n for n, gradient in results[0][1].items() if gradient is not None}
    assert trained == {n for n in results[0][1] if ".lora_" in n or "score" in n}
    assert all(results[0][1][n].abs().max() > 0 for n in trained)


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_recomputing_activations_changes_nothing(tmp_path, name):
    groups, results = some_groups(SIZES, seed=2), []
    for recomputing in (True, False):
        model = adapted(tmp_path, name, "packed", gradient_checkpointing=recomputing)
        results.append(rewards_and_gradients(model, lay_out(groups, "packed")))
    check_equal(*results)


def test_training_starts_from_the_rewards_of_the_base_model(tmp_path):
    packed = lay_out(some_groups(SIZES), "packed")
    model = build(tmp_path, "llama", "packed")
    before = model(packed)
    add_adapters(model, LORA, seed=1)
    assert torch.equal(model(packed), before)


def test_adapters_begin_as_peft_draws_them_whichever_layers_have_them(tmp_path):
    def first(lora: LoraConfig, seed: int) -> Any:
        model = build(tmp_path, "llama", "packed")
        add_adapters(model, lora, seed=seed)
        return {n: p for n, p in model.named_parameters() if ".lora_A." in n}

    all_layers = first(LORA, 1)
    some = first(LoraConfig(rank=2, targets=("k_proj",)), 1)
    assert len(all_layers) == 14 and len(some) == 2
    assert all(torch.equal(all_layers[name], weight) for name, weight in some.items())
    assert not any(torch.equal(weight, first(LORA, 2)[name]) for name, weight in some.items())
    for weight in all_layers.values():
        bound = weight.shape[1] ** -0.5
        assert weight.dtype == torch.float32 and 0.8 * bound < weight.abs().max() <= bound


def test_rewards_are_those_of_pefts_own_model(tmp_path):
    packed = lay_out(some_groups(SIZES), "packed")
    lora = LoraConfig(rank=2, alpha=5.0, rslora=True, targets=("q_proj", "mlp.down_proj"))
    ours = adapted(tmp_path, "llama", "packed", lora)
    theirs = build_in_float64(tmp_path, "llama", "packed")
    config = peft.LoraConfig(
        r=2, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"]
    )
    wrapped = peft.get_peft_model(theirs.classifier, config)
    state = {f"base_model.model.{n}": v for n, v in ours.classifier.state_dict().items()}
    wrapped.load_state_dict(state)
    torch.testing.assert_close(ours(packed), theirs(packed), rtol=0, atol=0)


def test_embeddings_are_trained_only_if_asked(tmp_path):
    for wanted in (False, True):
        model = build(tmp_path, "llama", "packed")
        add_adapters(model, LoraConfig(rank=1, train_embeddings=wanted), seed=0)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert ("classifier.model.embed_tokens.weight" in trained) == wanted
        assert "classifier.score.weight" in trained


def test_targets_are_all_linear_layers_or_those_of_a_name(tmp_path):
    classifier = build(tmp_path, "gpt_neox", "packed").classifier
    assert len(find_targets(classifier, ["all-linear"])) == 8
    assert find_targets(classifier, ["attention.dense"]) == [
        "gpt_neox.layers.0.attention.dense", "gpt_neox.layers.1.attention.dense",
    ]  # fmt: skip
    with pytest.raises(
        InputError,
        match=r"names 'q_proj', but the gpt_neox model has no such .*"
        r"Choose among dense, dense_4h_to_h, dense_h_to_4h, query_key_value",
    ):
        find_targets(classifier, ["dense", "q_proj"])
    with pytest.raises(InputError, match="'score'"):
        find_targets(classifier, ["score"])


def test_adapters_are_described_by_their_layers(tmp_path):
    model = build(tmp_path, "llama", "packed")
    assert find_adapters(model.classifier) == []
    add_adapters(model, LoraConfig(rank=4, alpha=2.0, targets=("o_proj",)), seed=0)
    assert [(a.layer, a.scaling, a.is_transposed) for a in find_adapters(model.classifier)] == [
        (f"model.layers.{i}.self_attn.o_proj", 0.5, False) for i in range(2)
    ]
