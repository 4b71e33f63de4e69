"""FLOPs that the rewards of some pairs take, counted once: what any way to train them is held to.

A product of matrices takes 2 FLOPs a weight and token, a query-key product 4 a number of a head
(scores, and the sum of values); the backward pass takes twice as much (arXiv:2001.08361, p. 7).
Nothing is counted that the rewards do not need: no padding, no prefix twice, no recomputed
activation, and of the last layer keys and values alone but for the two tokens that are read.
"""

from __future__ import annotations

from torch import nn

from rm_ray.data.pair_tokens import PairLengths
from rm_ray.model.reward_model import RewardModel


def count_step(model: RewardModel, lengths: PairLengths) -> float:
    """Return the FLOPs of a forward and backward pass over these pairs."""
    config = model.classifier.config
    layers: nn.ModuleList = model.classifier.base_model.layers
    tokens, ends = int(lengths.distinct.sum()), 2 * len(lengths)
    width = layers[0].self_attn.head_dim * config.num_attention_heads
    products = int(lengths.attended.sum())
    of_ends = int((lengths.chosen + lengths.rejected).sum())
    whole = len(layers) - 1
    linear = sum(module.weight.numel() for module in layers[0].modules() if is_linear(module))
    attention = layers[0].self_attn
    of_keys = attention.k_proj.weight.numel() + attention.v_proj.weight.numel()
    forward = 2 * linear * (whole * tokens + ends) + 2 * of_keys * (tokens - ends)
    forward += 4 * width * (whole * products + of_ends)
    return 3.0 * forward


def is_linear(module: nn.Module) -> bool:
    """Tell whether a module is one product of matrices."""
    return isinstance(module, nn.Linear)
