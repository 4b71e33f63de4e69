"""Small models of every family that can be packed, and pairs of random tokens for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.packing import PackedPairs, pack_pairs
from rm_ray.batches.padding import PaddedPairs, pad_pairs
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.model import ModelConfig
from rm_ray.data.cache.pair_tokens import PairTokens, join_pairs
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


def some_pairs(count: int, seed: int = 0, longest: int = 24) -> PairTokens:
    """Draw pairs whose prefix may be empty, and whose tails are 1 to ``longest`` tokens."""
    rng = np.random.default_rng(seed)

    def pair() -> tuple[list[int], list[int]]:
        prefix = rng.integers(3, VOCABULARY - 1, rng.integers(0, longest)).tolist()
        tails = [
            [first, *rng.integers(3, VOCABULARY - 1, rng.integers(0, longest)).tolist()]
            for first in rng.choice(np.arange(3, VOCABULARY - 1), 2, replace=False).tolist()
        ]
        return prefix + tails[0], prefix + tails[1]

    return join_pairs([pair() for _ in range(count)])


def lay_out(pairs: PairTokens, layout: Layout, kernel: Kernel = "grouped") -> Any:
    """Return the batch of some pairs that weigh the same."""
    weighting = {"margins": np.zeros(len(pairs)), "weights": np.ones(len(pairs))}
    if layout == "packed":
        return pack_pairs(pairs, kernel=kernel, **weighting)
    return pad_pairs(pairs, pad_token_id=PAD, **weighting)


def rewards_and_gradients(
    model: RewardModel, pairs: PaddedPairs | PackedPairs
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the rewards ``[2P]``, and the gradient of their sum with random weights."""
    rewards = model(pairs)
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
