"""Small models of every family that can be packed, and groups of random tokens for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import unlabelled
from rm_ray.batches.packing import PackedGroups, pack_groups
from rm_ray.batches.padding import PaddedGroups, pad_groups
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.group_tokens import GroupTokens, join_groups
from rm_ray.model.build import build_reward_model
from rm_ray.model.reward_model import RewardModel

VOCABULARY, PAD = 200, 199

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-grouped": {"model_type": "llama", "num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 1, "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": 5},
    "qwen2": {"num_key_value_heads": 1},
    "qwen2-window": {
        "model_type": "qwen2", "num_key_value_heads": 1, "use_sliding_window": True,
        "sliding_window": 4, "max_window_layers": 1,
    },
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
    "olmo2": {"num_key_value_heads": 1},
    "olmo3": {"num_key_value_heads": 1, "sliding_window": 4,
              "layer_types": ["sliding_attention", "full_attention"]},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "gpt_neox": {},
}  # fmt: skip


def describe(name: str) -> dict[str, Any]:
    """Return a family's config, of 2 layers."""
    sizes = {
        "model_type": name, "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    return sizes | FAMILIES[name]


class FakeTokenizer:
    """What the model asks of a tokenizer."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, PAD

    def __len__(self) -> int:
        return VOCABULARY


def build(folder: Path, name: str, layout: Layout, **options: Any) -> RewardModel:
    """Return a model of random weights, which are the same every time, in float32."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(describe(name)))
    config = ModelConfig(name_or_path=str(path), **options)
    model = build_reward_model(config, FakeTokenizer(), seed=5, layout=layout)  # type: ignore[arg-type]
    return model.train()


def build_in_float64(folder: Path, name: str, layout: Layout, **options: Any) -> RewardModel:
    """Return the same model, computed in float64 throughout."""
    model = build(folder, name, layout, **options)
    in_float64(model)
    return model


def in_float64(model: RewardModel) -> None:
    """Compute every part in float64: norms and head would go through float32."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = rms_norm(module)
    head = model.classifier.score
    head.forward = lambda hidden: F.linear(hidden, head.weight)


def rms_norm(module: Any) -> Any:
    """Return the norm's definition, without its detour through float32."""
    extra = 1.0 if "Gemma" in type(module).__name__ else 0.0
    epsilon = getattr(module, "variance_epsilon", None) or module.eps

    def forward(hidden: Tensor) -> Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)
        return hidden * scale * (module.weight + extra)

    return forward


def some_pairs(count: int, seed: int = 0, longest: int = 24) -> GroupTokens:
    """Draw pairs whose prefix may be empty, and whose tails are 1 to ``longest`` tokens."""
    return some_groups([2] * count, seed=seed, longest=longest)


def some_groups(sizes: Sequence[int], seed: int = 0, longest: int = 24) -> GroupTokens:
    """Draw groups of these numbers of conversations, which are as in ``some_pairs``."""
    rng = np.random.default_rng(seed)

    def conversations(size: int) -> list[list[int]]:
        prefix = rng.integers(3, VOCABULARY - 1, rng.integers(0, longest)).tolist()
        tails = [
            [first, *rng.integers(3, VOCABULARY - 1, rng.integers(0, longest)).tolist()]
            for first in rng.choice(np.arange(3, VOCABULARY - 1), size, replace=False).tolist()
        ]
        return [prefix + tail for tail in tails]

    return join_groups([conversations(size) for size in sizes])


def lay_out(groups: GroupTokens, layout: Layout, kernel: Kernel = "grouped") -> Any:
    """Return the batch of some groups, without labels."""
    if layout == "packed":
        return pack_groups(groups, unlabelled(groups), kernel=kernel)
    return pad_groups(groups, unlabelled(groups), pad_token_id=PAD)


def rewards_and_gradients(
    model: RewardModel, groups: PaddedGroups | PackedGroups
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the rewards ``[R]``, and the gradient of their sum with random weights."""
    rewards = model(groups)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(len(rewards), generator=generator, dtype=torch.float64)
    (rewards * weights).sum().backward()
    return rewards.detach(), {name: p.grad for name, p in model.named_parameters()}


def check_equal(found: Any, expected: Any) -> None:
    """Hold rewards and gradients in float64 to others, and the rewards to be no zeros."""
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    assert found[0].abs().max() > 0.01
    for name, gradient in expected[1].items():
        if gradient is None:
            assert found[1][name] is None
            continue
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-11)
