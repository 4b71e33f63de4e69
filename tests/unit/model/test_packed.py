"""Packed groups give the rewards and gradients of padded ones, in every family, in float64."""

import json

import numpy as np
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
    some_groups,
    some_pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_ray.batches import attention_index
from rm_ray.batches.collate import Collator
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import join_groups
from rm_ray.model.attention import PACKABLE
from rm_ray.model.build import build_reward_model
from rm_ray.model.reward_model import RewardModel


def test_every_packable_family_is_covered():
    assert {describe(name)["model_type"] for name in FAMILIES} == PACKABLE


MIXED = [2, 1, 3, 2, 5, 2, 1]
"""Numbers of responses."""


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_groups_give_the_rewards_and_gradients_of_padded_groups(tmp_path, name):
    groups = some_groups(MIXED)
    results = [
        rewards_and_gradients(build_in_float64(tmp_path, name, layout), lay_out(groups, layout))
        for layout in ("packed", "padded")
    ]
    check_equal(*results)
    assert all(gradient is not None for gradient in results[0][1].values())


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo3", "gpt_neox"])
def test_they_do_so_with_gradient_checkpointing(tmp_path, name):
    groups, models = some_groups(MIXED, seed=2), {}
    for layout, options in (("packed", {"gradient_checkpointing": True}), ("padded", {})):
        models[layout] = build_in_float64(tmp_path, name, layout, **options)
    check_equal(
        *(rewards_and_gradients(model, lay_out(groups, name)) for name, model in models.items())
    )


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_they_do_so_with_most_parameters_frozen(tmp_path, name):
    groups, results = some_groups(MIXED, seed=3), []
    for layout in ("packed", "padded"):
        model = build_in_float64(tmp_path, name, layout)
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad = "attn.q_proj" in parameter_name or "dense" in parameter_name
        results.append(rewards_and_gradients(model, lay_out(groups, layout)))
    check_equal(*results)
    assert any(gradient is not None for gradient in results[0][1].values())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([1, 2, 2, 2, 3, 5]), min_size=1, max_size=8),
    st.integers(0, 2**16),
    st.integers(1, 40),
    st.sampled_from([1, 2**17]),
)
def test_a_reward_is_that_of_the_conversation_alone(
    models: dict[str, RewardModel], sizes: list[int], seed: int, longest: int, small_work: int
):
    groups = some_groups(sizes, seed=seed, longest=longest)
    alone = [
        join_groups([[ids.tolist()]]) for i in range(len(sizes)) for ids in groups.conversations(i)
    ]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(attention_index, "SMALL_WORK", small_work)
        together = models["packed"](lay_out(groups, "packed"))
        padded = models["padded"](lay_out(groups, "padded"))
        each = torch.cat([models["padded"](lay_out(one, "padded")) for one in alone])
    torch.testing.assert_close(together, padded, rtol=0, atol=1e-12)
    torch.testing.assert_close(together, each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["llama-grouped", "gpt_neox"])
def test_long_conversations_give_the_rewards_and_gradients_of_each_alone(
    tmp_path, name, monkeypatch
):
    """So long that masks would be large and that branches form groups by their length."""
    monkeypatch.setattr(attention_index, "MAX_MASK", 2**20)
    rng = np.random.default_rng(0)
    prefix, *tails = (rng.integers(3, PAD, size).tolist() for size in (900, 1_100, 1_000, 40))
    whole = [prefix + tail for tail in tails]
    assert len(whole[1]) * len(tails[1]) > attention_index.MAX_MASK
    assert len(whole[2]) * len(tails[2]) < attention_index.MAX_MASK
    together = lay_out(join_groups([whole]), "packed")
    assert [group.mask is None for group in together.everywhere.groups] == [False, True]

    found = rewards_and_gradients(build_in_float64(tmp_path, name, "packed"), together)
    model = build_in_float64(tmp_path, name, "padded")
    weights = torch.randn(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards = []
    for ids, weight in zip(whole, weights, strict=True):
        (reward,) = model(lay_out(join_groups([[ids]]), "padded"))
        (reward * weight).backward()
        rewards.append(reward.detach())
    alone = {parameter: p.grad for parameter, p in model.named_parameters()}
    check_equal(found, (torch.stack(rewards), alone))


def test_the_order_of_responses_in_a_group_changes_no_reward(models: dict[str, RewardModel]):
    groups = some_groups([5, 3, 1], seed=9)
    conversations = [[ids.tolist() for ids in groups.conversations(i)] for i in range(3)]
    turned = join_groups([each[::-1] for each in conversations])
    order = np.array([4, 3, 2, 1, 0, 7, 6, 5, 8])

    with torch.no_grad():
        for layout, model in models.items():
            expected = model(lay_out(groups, layout))[order]
            found = model(lay_out(turned, layout))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


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
