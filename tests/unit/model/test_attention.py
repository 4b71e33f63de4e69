"""The attention kernel of a model, and the same results for every layout of keys."""

import pytest
import torch
from families import (
    FAMILIES,
    build_in_float64,
    check_equal,
    describe,
    lay_out,
    rewards_and_gradients,
    some_pairs,
)
from transformers import AutoConfig

from rm_ray.model.attention import choose_kernel, why_not_packed


def test_masks_stay_far_smaller_than_the_row_squared():
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
def test_the_config_shows_why_a_model_cannot_be_packed(settings, reason):
    found = why_not_packed(AutoConfig.for_model(**settings))
    assert found is not None
    assert reason in found


def test_every_packable_model_is_accepted():
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
        ("cpu", torch.bfloat16, 64, (9, 0), "shared"),
    ],
)
def test_flash_attention_is_chosen_if_the_device_supports_it(
    monkeypatch, device, dtype, size, capability, kernel
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_kernel(torch.device(device), dtype, head_size=size) == kernel


@pytest.mark.parametrize("name", ["llama-grouped", "mistral-window"])
def test_repeating_shared_keys_for_each_head_changes_nothing(tmp_path, name, monkeypatch):
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
