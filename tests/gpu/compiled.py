"""torch.compile of the decoder's layers, for rows whose length changes with every step."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.utils import counters

from rm_ray.model.reward_model import RewardModel


def compile_layers(model: RewardModel, *, on_gpu: bool) -> None:
    """Compile each layer but the last, whose forward is ours, for any number of tokens.

    All layers share one graph. On a CPU the graph is traced and not compiled.
    """
    torch._dynamo.reset()
    counters.clear()
    layers: Any = model.classifier.base_model.layers
    for layer in layers[:-1]:
        layer.compile(dynamic=True, backend="inductor" if on_gpu else "eager")


def count_graphs() -> int:
    """Return how often something was compiled since; the first time is one of them."""
    return int(counters["stats"]["unique_graphs"])
