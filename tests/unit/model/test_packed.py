"""Packed pairs give the rewards and gradients of padded pairs, in every family, in float64."""

import json

import pytest
import torch
from families import (
    FAMILIES,
    PAD,
    FakeTokenizer,
    build_in_float64,
    check_equal,
    describe,
    lay_out,
    rewards_and_gradients,
    some_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_ray.batches import attention_index
from rm_ray.batches.collate import Collator
from rm_ray.config.sections.model import ModelConfig
from rm_ray.model.attention import PACKABLE
from rm_ray.model.build import build_reward_model
from rm_ray.model.reward_model import RewardModel


def test_every_packable_family_is_covered():
    assert {describe(name)["model_type"] for name in FAMILIES} == PACKABLE


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_pairs_give_the_rewards_and_gradients_of_padded_pairs(tmp_path, name):
    pairs = some_pairs(9)
    results = [
        rewards_and_gradients(build_in_float64(tmp_path, name, layout), lay_out(pairs, layout))
        for layout in ("packed", "padded")
    ]
    check_equal(*results)
    assert all(gradient is not None for gradient in results[0][1].values())


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo3", "gpt_neox"])
def test_they_do_so_with_gradient_checkpointing(tmp_path, name):
    pairs = some_pairs(5, seed=2)
    check_equal(
        rewards_and_gradients(
            build_in_float64(tmp_path, name, "packed", gradient_checkpointing=True),
            lay_out(pairs, "packed"),
        ),
        rewards_and_gradients(build_in_float64(tmp_path, name, "padded"), lay_out(pairs, "padded")),
    )


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_they_do_so_with_most_parameters_frozen(tmp_path, name):
    pairs, results = some_pairs(5, seed=3), []
    for layout in ("packed", "padded"):
        model = build_in_float64(tmp_path, name, layout)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad = "attn.q_proj" in parameter_name or "dense" in parameter_name
        results.append(rewards_and_gradients(model, lay_out(pairs, layout)))
    check_equal(*results)
    assert any(gradient is not None for gradient in results[0][1].values())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**16), st.integers(1, 40), st.sampled_from([1, 2**17]))
def test_a_reward_does_not_depend_on_the_pairs_packed_with_it(
    models: dict[str, RewardModel], count: int, seed: int, longest: int, small_work: int
):
    pairs = some_pairs(count, seed=seed, longest=longest)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(attention_index, "SMALL_WORK", small_work)
        together = models["packed"](lay_out(pairs, "packed"))
        padded = models["padded"](lay_out(pairs, "padded"))
    torch.testing.assert_close(together, padded, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    folder = tmp_path_factory.mktemp("models")
    return {layout: build_in_float64(folder, "olmo3", layout) for layout in ("packed", "padded")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length attention needs a GPU")
@pytest.mark.parametrize("name", ["llama-grouped", "mistral-window", "gpt_neox"])
def test_flash_attention_on_a_gpu_matches_the_grouped_kernel(tmp_path, name):
    """Rewards and gradients under bfloat16 autocast, as in training."""
    pairs = some_pairs(32, seed=6, longest=200)
    found = []
    for kernel in ("grouped", "varlen"):
        (tmp_path / f"{name}.json").write_text(json.dumps(describe(name)))
        config = ModelConfig(name_or_path=str(tmp_path / f"{name}.json"))
        model = build_reward_model(config, FakeTokenizer(), seed=5).cuda()  # type: ignore[arg-type]
        packed = Collator(
            layout="packed", kernel=kernel, pad_token_id=PAD, device=torch.device("cuda")
        ).to_device(lay_out(pairs, "packed", kernel=kernel))
        with torch.autocast("cuda", torch.bfloat16):
            rewards = model(packed)
        rewards.square().sum().backward()
        found.append((rewards.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (expected, gradients), (rewards, ours) = found
    torch.testing.assert_close(rewards, expected, rtol=0, atol=0.05)
    for parameter, gradient in gradients.items():
        size = float(gradient.abs().max())
        torch.testing.assert_close(ours[parameter], gradient, rtol=0, atol=0.05 * size)
