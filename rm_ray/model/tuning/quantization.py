"""QLoRA: linear layers whose frozen weights take 4 bits each (arXiv:2305.14314), by bitsandbytes.

A weight is one of the 16 levels of NF4, times the largest absolute value of its block of 64, which
takes 8 bits itself (double quantization, p. 4): 4.127 bits a weight. Importing this module imports
bitsandbytes, so others do it where they need it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from bitsandbytes.autograd._functions import matmul_4bit
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor, nn

from rm_ray.model.architecture import QUANTIZED_BLOCK, is_quantizable, num_weights
from rm_ray.model.reward_model import RewardModel

logger = logging.getLogger(__name__)


class Nf4Linear(Linear4bit):
    """A linear layer with a frozen weight in 4 bits.

    It computes in the dtype of the values that were quantized, and returns that dtype, as a linear
    layer does under autocast. bitsandbytes' own ``forward`` returns the dtype of its input, and on
    some CPUs it repacks the weight in evaluations, after which layers pass no gradients on.
    """

    weight: Any
    bias: Any

    def __init__(self, values: Tensor, bias: nn.Parameter | None) -> None:
        """Quantize ``values``, ``[out, in]``, on their device."""
        out_features, in_features = values.shape
        super().__init__(  # type: ignore[no-untyped-call]
            in_features,
            out_features,
            bias=False,
            compute_dtype=values.dtype,
            quant_type="nf4",
            device="meta",
        )
        self.bias = bias
        weight: Any = Params4bit(values, compress_statistics=True, quant_type="nf4")
        self.weight = weight.to(values.device)  # which quantizes

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        state = self.weight.quant_state
        result: Tensor = matmul_4bit(
            inputs.to(self.compute_dtype), self.weight, bias=bias, quant_state=state
        )
        return result

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """List weight and bias, as other layers do, without the parts of the weight."""
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


def dequantize(weight: Any) -> Tensor:
    """Return the values ``[out, in]`` that a quantized weight stands for, in their dtype."""
    values: Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return values


def quantize_backbone(model: RewardModel, *, dtype: torch.dtype) -> None:
    """Replace the backbone's linear layers by ``Nf4Linear``; call it before adapters are added.

    Weights are rounded to ``dtype`` and quantized one after another. Those of a lean model are read
    from their files meanwhile, so it never has them all; other parameters are read as they are.
    """
    backbone: nn.Module = model.classifier.base_model
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    left, quantized = [], 0
    for name in linear:
        layer: Any = backbone.get_submodule(name)
        if is_quantizable(layer):
            values = _values(model, layer.weight).to(dtype)
            backbone.set_submodule(name, Nf4Linear(values, layer.bias))
            quantized += values.numel()
        else:
            left.append(name)
    _read_others(model)
    total = sum(num_weights(parameter) for parameter in model.parameters())
    logger.info("holding %s of %s parameters in 4 bits (NF4)", f"{quantized:,}", f"{total:,}")
    if left:
        logger.warning(
            "%d of %d linear layers stay in %s, since their inputs are not a multiple of %d: %s",
            len(left),
            len(linear),
            str(dtype).removeprefix("torch."),
            QUANTIZED_BLOCK,
            ", ".join(sorted({name.rpartition(".")[2] for name in left})),
        )


def _read_others(model: RewardModel) -> None:
    """Read the parameters that are still on ``meta``."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                values = _values(model, parameter)
                module._parameters[name] = nn.Parameter(values, parameter.requires_grad)
    model.sources = None


def _values(model: RewardModel, parameter: nn.Parameter) -> Tensor:
    """Return the values of a parameter, read from their file if it is on ``meta``."""
    if not parameter.is_meta:
        return parameter.detach()
    assert model.sources is not None
    source = model.sources[parameter]
    return source.read().view(source.shape).to(parameter.dtype)
