"""What trainings are held to."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from plain_loop import Trained, train_plainly, train_with_peft

from rm_ray.config.sections.model import ModelConfig

WINDOWED = {
    "model_type": "mistral", "hidden_size": 64, "intermediate_size": 96, "vocab_size": 1024,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "sliding_window": 20, "max_position_embeddings": 2048,
}  # fmt: skip
"""Heads that share keys, and windows shorter than most conversations."""

Reference = Callable[..., Trained]
"""Takes the model's config, what is ``frozen`` and the loss on ``lists``, if not pairs.

The plain loop runs once for each.
"""


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model with sliding windows."""
    path: Path = tmp_path_factory.mktemp("model") / "windowed.json"
    path.write_text(json.dumps(WINDOWED))
    return str(path)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Losses, norms and weights of the plain loop."""

    @functools.cache
    def train(name_or_path: str, frozen: tuple[str, ...], lists: str) -> Trained:
        folder, model = tmp_path_factory.mktemp("plain"), ModelConfig(name_or_path=name_or_path)
        return train_plainly(folder, model, frozen=frozen, lists=lists)

    def once(model: ModelConfig, frozen: tuple[str, ...] = (), *, lists: str = "") -> Trained:
        return train(model.name_or_path, frozen, lists)

    return once


@pytest.fixture(scope="session")
def reference(plain: Reference) -> Trained:
    """Losses, norms and weights of the plain loop on the built-in model."""
    return plain(ModelConfig())


@pytest.fixture(scope="session")
def peft_loop(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """What peft's own model becomes; the loop runs once for each setting."""
    return functools.cache(
        lambda lora, quantization="none": train_with_peft(
            tmp_path_factory.mktemp("peft"), lora, quantization
        )
    )
