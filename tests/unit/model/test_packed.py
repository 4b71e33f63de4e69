"""Packed pairs give the rewards and gradients of padded ones, in every family, in float64."""

import json
from typing import Any

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
from torch import nn
from transformers import AutoConfig

from rm_ray.batches import packing
from rm_ray.batches.collate import Collator
from rm_ray.config.train_config import ModelConfig
from rm_ray.model.attention import PACKABLE, choose_kernel, why_not_packed
from rm_ray.model.last_layer import LIKE_LLAMA
from rm_ray.model.reward_model import RewardModel, build_reward_model


def test_every_packable_family_is_tried():
    assert {describe(name)["model_type"] for name in FAMILIES} == PACKABLE


@pytest.mark.parametrize("name", FAMILIES)
def test_rewards_and_every_gradient_are_those_of_padded_pairs(tmp_path, name):
    pairs = some_pairs(9)
    results = [
        rewards_and_gradients(build_in_float64(tmp_path, name, layout), lay_out(pairs, layout))
        for layout in ("packed", "padded")
    ]
    check_equal(*results)
    assert all(gradient is not None for gradient in results[0][1].values())


@pytest.mark.parametrize("name", ["llama", "qwen3", "olmo3", "gpt_neox"])
def test_they_are_so_under_gradient_checkpointing(tmp_path, name):
    pairs = some_pairs(5, seed=2)
    check_equal(
        rewards_and_gradients(
            build_in_float64(tmp_path, name, "packed", gradient_checkpointing=True),
            lay_out(pairs, "packed"),
        ),
        rewards_and_gradients(build_in_float64(tmp_path, name, "padded"), lay_out(pairs, "padded")),
    )


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_they_are_so_where_most_parameters_are_frozen(tmp_path, name):
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
def test_a_reward_does_not_depend_on_what_it_is_packed_with(
    models: dict[str, RewardModel], count: int, seed: int, longest: int, small_work: int
):
    pairs = some_pairs(count, seed=seed, longest=longest)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(packing, "SMALL_WORK", small_work)
        together = models["packed"](lay_out(pairs, "packed"))
        padded = models["padded"](lay_out(pairs, "padded"))
    torch.testing.assert_close(together, padded, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RewardModel]:
    folder = tmp_path_factory.mktemp("models")
    return {layout: build_in_float64(folder, "olmo3", layout) for layout in ("packed", "padded")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length attention needs a GPU")
@pytest.mark.parametrize("name", ["llama-grouped", "mistral-window", "gpt_neox"])
def test_flash_attention_on_a_gpu_follows_the_grouped_kernel(tmp_path, name):
    """Rewards and gradients, in the bfloat16 that training uses."""
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


def test_the_last_layer_is_computed_at_the_ends_alone(tmp_path):
    pairs = some_pairs(4, seed=7)
    packed = lay_out(pairs, "packed")
    seen: dict[str, int] = {}
    model = build_in_float64(tmp_path, "llama", "packed")
    last = model.classifier.base_model.layers[-1]
    assert type(last).__name__ in LIKE_LLAMA

    def count(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: output.shape[1]})

    for name, module in last.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(count(name))
    model(packed)
    everywhere, ends = packed.input_ids.shape[1], 2 * len(pairs)
    assert seen == {
        "self_attn.q_proj": ends, "self_attn.k_proj": everywhere, "self_attn.v_proj": everywhere,
        "self_attn.o_proj": ends, "mlp.gate_proj": ends, "mlp.up_proj": ends,
        "mlp.down_proj": ends,
    }  # fmt: skip


def test_no_mask_is_as_large_as_the_row_squared():
    packed = lay_out(some_pairs(64, seed=8, longest=60), "packed")
    tokens = packed.input_ids.numel()
    masks = sum(group.mask.numel() for group in packed.everywhere.groups if group.mask is not None)
    assert masks < tokens**2 / 20


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not one of gemma, gpt_neox, llama"),
        ({"model_type": "gemma2"}, "'gemma2' is not one of"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 32}, "chunked_attention"),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            },
            "'dynamic' rotary embeddings",
        ),
    ],
)
def test_what_cannot_be_packed_is_told_from_its_config(settings, reason):
    found = why_not_packed(AutoConfig.for_model(**settings))
    assert found is not None
    assert reason in found


def test_what_can_be_packed_is_not_refused():
    for name in FAMILIES:
        assert why_not_packed(AutoConfig.for_model(**describe(name))) is None


@pytest.mark.parametrize(
    ("device", "dtype", "size", "capability", "kernel"),
    [
        ("cuda", torch.bfloat16, 128, (9, 0), "varlen"),
        ("cuda", torch.float16, 64, (8, 0), "varlen"),
        ("cuda", torch.bfloat16, 64, (7, 5), "grouped"),
        ("cuda", torch.bfloat16, 20, (9, 0), "grouped"),
        ("cuda", torch.bfloat16, 320, (9, 0), "grouped"),
        ("cuda", torch.float32, 64, (9, 0), "grouped"),
        ("cpu", torch.bfloat16, 64, (9, 0), "grouped"),
    ],
)
def test_flash_attention_is_chosen_where_it_runs(
    monkeypatch, device, dtype, size, capability, kernel
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_kernel(torch.device(device), dtype, head_size=size) == kernel


@pytest.mark.parametrize("name", ["llama-grouped", "mistral-window"])
def test_keys_repeated_for_each_head_that_shares_them_change_nothing(tmp_path, name, monkeypatch):
    pairs = lay_out(some_pairs(5), "packed")
    shared = rewards_and_gradients(build_in_float64(tmp_path, name, "packed"), pairs)
    asked = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda *args, **options: asked.append(options["enable_gqa"]) or real(*args, **options),
    )
    monkeypatch.setattr("rm_ray.model.attention._repeats_keys", lambda query: True)  # as on GPUs
    repeated = rewards_and_gradients(build_in_float64(tmp_path, name, "packed"), pairs)
    check_equal(repeated, shared)
    assert asked and not any(asked)
