"""Liger's kernels against the plain ones; they use Triton and need a GPU."""

import importlib
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tables import builtin_table

from rm_ray.batches.collate import Collator
from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.model import ModelConfig
from rm_ray.errors import InputError
from rm_ray.model.build import build_reward_model
from rm_ray.model.liger import apply_liger

GPU = torch.device("cuda")
FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "olmo2"]


@pytest.fixture
def plain_modules() -> Iterator[None]:
    """Restore transformers' modules, which Liger patches for all later models."""
    modules = [importlib.import_module(f"transformers.models.{f}.modeling_{f}") for f in FAMILIES]
    before = [dict(vars(module)) for module in modules]
    yield
    for module, names in zip(modules, before, strict=True):
        vars(module).update(names)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Liger's kernels need a GPU")
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_liger_gives_the_rewards_and_gradients_of_the_plain_kernels(
    tmp_path, plain_modules, family, layout
):
    path = tmp_path / "model.json"
    path.write_text(json.dumps({
        "model_type": family, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 1024,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    }))  # fmt: skip
    table, tokenizer = builtin_table(tmp_path / "table", 16)
    settings = PlanSettings(global_batch_size=16, tokens_per_micro_batch=10_000, layout=layout)
    collator = Collator(
        layout=layout, kernel="grouped", pad_token_id=tokenizer.pad_token_id, device=GPU
    )
    loaded = load_step(
        table, Plan(lengths=table.lengths, settings=settings), 0, rank=0, world_size=1
    )
    (ready,) = collator.move(collator.lay_out(loaded))
    found = []
    for choice in ("off", "on"):
        config = ModelConfig(name_or_path=str(path))
        model = build_reward_model(config, tokenizer, seed=0, layout=layout)
        assert apply_liger(model, choice, on_gpu=True) is (choice == "on")
        rewards = model.to(GPU)(ready.groups)
        rewards.square().sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        found.append((rewards.detach(), gradients))
    (plain, plain_gradients), (fused, fused_gradients) = found
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)
    for name, gradient in plain_gradients.items():
        size = float(np.abs(gradient.cpu().numpy()).max())
        torch.testing.assert_close(fused_gradients[name], gradient, rtol=1e-3, atol=1e-4 * size)


def test_without_a_gpu_liger_is_refused_if_on_and_skipped_if_auto(tokenizer):
    model = build_reward_model(ModelConfig(), tokenizer, seed=0)
    assert not apply_liger(model, "auto", on_gpu=False)
    assert not apply_liger(model, "off", on_gpu=True)
    with pytest.raises(InputError, match="need a GPU"):
        apply_liger(model, "on", on_gpu=False)
