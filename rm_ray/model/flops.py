"""The FLOPs that groups need from a model, independent of how a run computes them.

Only matrix products count, at two FLOPs per multiply-add: each distinct token of a group passes
once through every layer's matrices and meets each key that it attends to once. In a last layer
that can be trimmed, only the work behind a reward counts. Embeddings, norms and activations are
excluded, and so is overhead: padding, repeated prefixes, masked products, recomputed activations.

A backward pass goes down to the first layer with anything that is trained, and adds the gradients
of what is trained; adapters count as the matrices that they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from rm_ray.data.cache.group_tokens import GroupLengths
from rm_ray.model.architecture import find_decoder, num_weights
from rm_ray.model.attention import head_size
from rm_ray.model.last_layer import is_trimmable

BACKWARD = 2
"""FLOPs of a backward pass per FLOP of the forward pass: each product needs two more, one for the
gradient of each factor (arXiv:2001.08361, p. 7)."""


@dataclass(frozen=True, kw_only=True)
class LayerFlops:
    """The forward FLOPs of one layer."""

    token: int
    """FLOPs per token in the layer's matrices."""

    product: int
    """FLOPs per query-key pair, over all heads; 0 in layers without attention."""

    window: int | None = None
    """The most keys that a query sees, including its own; None for all."""

    backward: float = BACKWARD
    """FLOPs of the backward pass per FLOP of the forward pass in the matrices: 2 if they are
    trained, 1 if they are frozen, 0 if nothing is trained here or below."""


@dataclass(frozen=True, kw_only=True)
class TrimmedFlops:
    """The forward FLOPs of a last layer that is computed only for rewards."""

    token: int
    """FLOPs per token: its key and its value."""

    reward: int
    """FLOPs per token that a reward is read from: all other matrices."""

    product: int

    backward: float = BACKWARD
    """As in other layers."""


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """The FLOPs of a reward model for groups of given lengths."""

    layers: tuple[LayerFlops, ...]
    """The layers that every token passes through."""

    last: TrimmedFlops | None
    """The last layer if it can be trimmed; None if it is one of ``layers``."""

    head: int
    """FLOPs per reward in the head."""

    @classmethod
    def of(cls, classifier: PreTrainedModel) -> ModelFlops:
        """Read a classifier's sizes; its weights may be on ``meta``, but must not be sharded.

        What requires gradients is trained.
        """
        config = classifier.config.get_text_config()
        settings = config.to_dict()
        decoder = find_decoder(classifier)
        assert decoder is not None, "a decoder without a list of layers"
        modules = next(m for m in decoder.children() if isinstance(m, nn.ModuleList))
        kinds = settings.get("layer_types") or []
        product = _product(config.num_attention_heads, head_size(config), settings)
        layers = [
            LayerFlops(
                token=_matrices(layer, settings),
                product=product if _attends(kinds[i : i + 1]) else 0,
                window=_window(kinds[i : i + 1], settings),
                backward=backward,
            )
            for i, (layer, backward) in enumerate(
                zip(modules, _backward(classifier, modules, settings), strict=True)
            )
        ]
        last = None
        if is_trimmable(classifier.base_model):
            whole = layers.pop()
            attention: Any = modules[-1].self_attn
            token = 2 * sum(num_weights(m.weight) for m in (attention.k_proj, attention.v_proj))
            last = TrimmedFlops(
                token=token, reward=whole.token - token, product=product, backward=whole.backward
            )
        return cls(layers=tuple(layers), last=last, head=2 * config.hidden_size)

    @cached_property
    def reached(self) -> ModelFlops:
        """The part of the model that gradients pass through: 0 FLOPs in the layers below."""
        return self._scaled(lambda backward: float(backward > 0), 1)

    @cached_property
    def gradients(self) -> ModelFlops:
        """The backward pass, as if it were a forward pass."""
        return self._scaled(lambda backward: backward, BACKWARD)

    def _scaled(self, matrices: Callable[[float], float], products: int) -> ModelFlops:
        """Scale every layer's matrices by a function of its ``backward``, and the rest.

        Attention has no weights: its backward pass takes ``BACKWARD`` times the FLOPs in any layer
        that gradients pass through. The lowest of these counts as the others do, although its first
        matrices pass no gradient on. A head on hidden states without gradients passes none on.
        """
        last = self.last
        is_reached = any(layer.backward for layer in self.layers)
        is_reached = is_reached or (last is not None and last.backward > 0)
        layers = [
            replace(
                layer,
                token=round(layer.token * matrices(layer.backward)),
                product=layer.product * products * (layer.backward > 0),
            )
            for layer in self.layers
        ]
        if last is not None:
            last = replace(
                last,
                token=round(last.token * matrices(last.backward)),
                reward=round(last.reward * matrices(last.backward)),
                product=last.product * products * (last.backward > 0),
            )
        return ModelFlops(
            layers=tuple(layers), last=last, head=self.head * (products if is_reached else 1)
        )

    def matrices(self, lengths: GroupLengths) -> np.ndarray:
        """Return the forward FLOPs of N groups in the model's matrices: ``[N]`` float64."""
        distinct = lengths.distinct.astype(np.float64)
        responses = lengths.num_responses
        flops: np.ndarray = distinct * sum(layer.token for layer in self.layers)
        flops = flops + responses * self.head
        if self.last is not None:
            flops += distinct * self.last.token + responses * self.last.reward
        return flops

    def attention(self, lengths: GroupLengths) -> np.ndarray:
        """Return the forward FLOPs of N groups in attention: ``[N]`` float64."""
        flops = np.zeros(len(lengths))
        for window in {layer.window for layer in self.layers}:
            products = sum(layer.product for layer in self.layers if layer.window == window)
            flops += lengths.attended_within(window).astype(np.float64) * products
        if self.last is not None:
            flops += lengths.all.astype(np.float64) * self.last.product
        return flops

    def forward(self, lengths: GroupLengths) -> np.ndarray:
        """Return the FLOPs of a forward pass over each of N groups: ``[N]`` float64."""
        flops: np.ndarray = self.matrices(lengths) + self.attention(lengths)
        return flops

    def training(self, lengths: GroupLengths) -> np.ndarray:
        """Return the FLOPs of a forward and backward pass over N groups: ``[N]`` float64."""
        flops: np.ndarray = self.forward(lengths) + self.gradients.forward(lengths)
        return flops


def _backward(
    classifier: PreTrainedModel, layers: nn.ModuleList, settings: dict[str, Any]
) -> Iterator[float]:
    """Yield the FLOPs of each layer's backward pass per FLOP of its forward pass."""
    is_reached = any(p.requires_grad for p in classifier.get_input_embeddings().parameters())
    for layer in layers:
        is_reached = is_reached or any(p.requires_grad for p in layer.parameters())
        trained, every = (_matrices(layer, settings, only_trained=only) for only in (True, False))
        yield 1 + trained / every if is_reached and every else float(is_reached)


def _matrices(layer: nn.Module, settings: dict[str, Any], *, only_trained: bool = False) -> int:
    """Return the FLOPs of a token in a layer's matrices, counting only the experts it uses."""
    flops = 0
    for name, parameter in layer.named_parameters():
        path = name.split(".")
        if parameter.dim() < 2 or path[-1].endswith("bias"):
            continue
        if only_trained and not parameter.requires_grad:
            continue
        numbers = num_weights(parameter)
        if "experts" in path:
            num_experts = _num_experts(layer, path, parameter)
            numbers = numbers * int(settings["num_experts_per_tok"]) // num_experts
        flops += 2 * numbers
    return flops


def _num_experts(layer: nn.Module, path: list[str], parameter: nn.Parameter) -> int:
    """Return the number of experts: the modules of a list, or a tensor's first dimension."""
    experts = layer.get_submodule(".".join(path[: path.index("experts") + 1]))
    return len(experts) if isinstance(experts, nn.ModuleList) else len(parameter)


def _product(num_heads: int, width: int, settings: dict[str, Any]) -> int:
    """Return the FLOPs of a query-key pair over all heads: its score, and the weighted value.

    Query and value heads may differ in size (arXiv:2405.04434, p. 7).
    """
    query = settings.get("qk_head_dim") or width
    value = settings.get("v_head_dim") or width
    return int(2 * num_heads * (query + value))


def _attends(kind: list[str]) -> bool:
    """Return whether a layer of this kind is attention, not a state space or a convolution."""
    return not kind or (kind[0].endswith("attention") and kind[0] != "linear_attention")


def _window(kind: list[str], settings: dict[str, Any]) -> int | None:
    """Return the most keys that a query sees in a layer of this kind; None for all."""
    if kind and kind[0] != "sliding_attention":
        return None
    return settings.get("sliding_window") or None
