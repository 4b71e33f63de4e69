"""NF4 with double quantization in NumPy, written from the papers, to hold bitsandbytes to."""

from typing import Any

import numpy as np
import torch
from bitsandbytes import functional
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[Any]]

LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
])  # fmt: skip
"""The values of NF4 (arXiv:2305.14314, appendix E)."""

BLOCK, SCALE_BLOCK = 64, 256
"""Weights that share a scale, and scales that share one of their own (p. 5)."""


def dynamic_levels() -> Array:
    """Return the 256 values of the dynamic tree data type (arXiv:2110.02861, p. 3).

    A number has a sign, an exponent of 10 in unary, and a linear fraction of 0.1 to 1 in the bits
    that are left.
    """
    positive = [1.0]
    for bits in range(7):
        edges = np.linspace(0.1, 1, 2**bits + 1)
        positive += [*(10.0 ** (bits - 6) * (edges[:-1] + edges[1:]) / 2)]
    return np.sort([0.0, *positive, *(-value for value in positive[1:])])


def nearest(values: Array, levels: Array, block: int) -> tuple[Array, Array]:
    """Return the indices of the nearest levels, ``[blocks, block]``, and each block's scale."""
    padded = np.zeros(-(-values.size // block) * block)
    padded[: values.size] = values.ravel()
    blocks = padded.reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)
    normed = blocks / np.where(scales == 0, 1, scales)[:, None]
    return np.abs(normed[:, :, None] - levels).argmin(axis=2), scales


def round_trip(weight: Tensor) -> Tensor:
    """Return the float32 values that a weight's 4-bit form stands for."""
    values = weight.detach().double().numpy()
    codes, scales = nearest(values, LEVELS, BLOCK)
    mean = scales.mean()
    levels = dynamic_levels()
    scale_codes, scale_scales = nearest(scales - mean, levels, SCALE_BLOCK)
    rounded = (levels[scale_codes] * scale_scales[:, None]).ravel()[: scales.size] + mean
    found = (LEVELS[codes] * rounded[:, None]).ravel()[: values.size].reshape(values.shape)
    return torch.from_numpy(found).float()


def round_linear_layers(backbone: nn.Module) -> None:
    """Give every linear layer of whole blocks the values that bitsandbytes reads from 4 bits.

    They are those of ``round_trip``, but for scales that lie next to the middle of two levels.
    """
    quantize, dequantize = functional.quantize_4bit, functional.dequantize_4bit
    for module in backbone.modules():
        if isinstance(module, nn.Linear) and module.in_features % BLOCK == 0:
            in_bits = quantize(module.weight.data, compress_statistics=True, quant_type="nf4")
            module.weight.data = dequantize(*in_bits)
