"""The last decoder layer, computed only at the tokens that rewards are read from.

Rewards use only the layer's output at the last token of each response. Every token needs a key and
a value, but only those last tokens need a query, the output projection and the feed-forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rm_ray.batches.packing import PackedGroups
from rm_ray.model.attention import attend

LIKE_LLAMA = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
)
"""Pre-norm layers with separate query, key and value projections that rotate whole heads."""

NORMED_HEADS = frozenset({"Qwen3DecoderLayer"})
"""Layers of ``LIKE_LLAMA`` that normalize each query and key head."""


def is_trimmable(backbone: nn.Module) -> bool:
    """Return whether the last layer can be trimmed: a known class without a sliding window."""
    layers = backbone._modules.get("layers")
    if not isinstance(layers, nn.ModuleList) or type(layers[-1]).__name__ not in LIKE_LLAMA:
        return False
    layer: Any = layers[-1]
    return layer.self_attn.config.to_dict().get("sliding_window") is None


def trim_last_layer(backbone: nn.Module) -> bool:
    """Make a decoder's last layer return only the last tokens of packed responses.

    Returns whether the layer was changed.
    """
    if not is_trimmable(backbone):
        return False
    layers: Any = backbone._modules["layers"]
    layer = layers[-1]
    layer.forward = functools.partial(_forward, layer, layer.forward)
    return True


def _forward(
    layer: Any,
    full_forward: Callable[..., Tensor],
    hidden: Tensor,
    *arguments: Any,
    packed: PackedGroups | None = None,
    **options: Any,
) -> Tensor:
    """Map ``[1, T, hidden]`` to ``[1, R, hidden]``; padded batches run the full layer."""
    if packed is None:
        return full_forward(hidden, *arguments, **options)
    attention, last = layer.self_attn, packed.last_positions
    cos, sin = options["position_embeddings"]
    normed = layer.input_layernorm(hidden)
    query = _heads(attention.q_proj(normed[:, last]), attention.head_dim)
    key = _heads(attention.k_proj(normed), attention.head_dim)
    value = _heads(attention.v_proj(normed), attention.head_dim)
    if type(layer).__name__ in NORMED_HEADS:
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key = _rotate(query, cos[:, last], sin[:, last]), _rotate(key, cos, sin)
    keys, values = key[0], value[0]
    if packed.cached is not None:
        keys, values = packed.cached.extend(attention.layer_idx, keys, values)
    output = attend(query[0], keys, values, packed.at_ends, scaling=attention.scaling, window=None)
    residual = hidden[:, last] + attention.o_proj(output.flatten(-2)[None])
    result: Tensor = residual + layer.mlp(layer.post_attention_layernorm(residual))
    return result


def _heads(states: Tensor, head_dim: int) -> Tensor:
    return states.view(*states.shape[:-1], -1, head_dim)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``[1, N, H, D]`` by the tokens' positions (arXiv:2104.09864, p. 7)."""
    left, right = states.chunk(2, dim=-1)
    turned = torch.cat([-right, left], dim=-1)
    return states * cos.unsqueeze(2) + turned * sin.unsqueeze(2)
