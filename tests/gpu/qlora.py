"""4-bit weights: what a layer multiplies by, what training learns with them, and what they cost."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from tables import builtin_table
from torch import Tensor, nn

from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt
from gpu.kernels import errors_of
from gpu.learning import PAIRS, SAME_LOSS, figures, train_on
from gpu.liger import time_passes
from gpu.shapes import build_on, shape
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.model.tuning.quantization import Nf4Linear, dequantize
from rm_ray.model.tuning.trainable import choose_trained

LAYERS = ((4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096))
"""Outputs and inputs of an 8B model's layers."""

ROWS = (1, 64, 4096)
"""Tokens at once: bitsandbytes has a kernel of its own for few."""

STEPS = 20
LORA = LoraConfig(rank=16, alpha=32.0)
MOST_ERROR = 2.0
"""Most error of a product, over that of PyTorch's own in the same arithmetic."""

NUMBERS = (
    "A 4-bit layer: largest errors over the largest number, beside a product in float64 with the "
    "values that a CPU reads from the same bits"
)
LEARNING = f"{STEPS} steps of adapters on 4-bit weights, {PAIRS} built-in pairs"
COST = "A forward and backward pass of 16k tokens through adapters, layers of 8B width, bfloat16"


def measure(bench: Bench) -> Iterator[Finding]:
    """Compare numbers, then losses, then time and memory."""
    for sizes in bench.some(LAYERS):
        for rows in bench.some(ROWS, 2):
            for dtype in (torch.float32, torch.bfloat16):
                labels = {"layer": f"{sizes[0]} x {sizes[1]}", "tokens": rows, "dtype": str(dtype)}
                compute = functools.partial(compare, bench, bench.pick(sizes, (96, 64)), rows)
                yield attempt(NUMBERS, labels, functools.partial(compute, dtype))
    yield from learn(bench)
    for quantization in ("none", "nf4"):
        labels = {"weights": "4 bits" if quantization == "nf4" else "bfloat16"}
        yield attempt(COST, labels, functools.partial(cost, bench, quantization))


def compare(
    bench: Bench, sizes: tuple[int, int], rows: int, dtype: torch.dtype
) -> tuple[Values, bool]:
    """Return the errors of a layer quantized on the CPU and moved, and of PyTorch's product."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(sizes, generator=generator) / sizes[1] ** 0.5
    layer = Nf4Linear(drawn.to(dtype), None)
    values = dequantize(layer.weight)
    layer.to(bench.device)
    inputs = torch.randn(rows, sizes[1], generator=generator).to(dtype)
    upstream = torch.randn(rows, sizes[0], generator=generator).to(dtype)
    exact = products(lambda x: x @ values.double().T, inputs.double(), upstream.double())
    on_device = values.to(bench.device)
    plain = functools.partial(nn.functional.linear, weight=on_device)
    found, usual = (
        errors_of([part.cpu() for part in products(way, *to(bench, inputs, upstream))], exact)
        for way in (layer, plain)
    )
    is_same = torch.equal(dequantize(layer.weight).cpu(), values)
    names = ("result", "gradient")
    figures = {f"{n} off": error for n, error in zip(names, found, strict=True)}
    figures |= {f"{n} off, PyTorch's": error for n, error in zip(names, usual, strict=True)}
    small = torch.finfo(dtype).eps
    is_close = all(a <= max(MOST_ERROR * b, small) for a, b in zip(found, usual, strict=True))
    return {"same values": is_same, **figures}, is_same and is_close


def to(bench: Bench, *tensors: Tensor) -> list[Tensor]:
    """Return tensors on the bench's device."""
    return [tensor.to(bench.device) for tensor in tensors]


def products(way: Any, inputs: Tensor, upstream: Tensor) -> list[Tensor]:
    """Return a layer's result and the gradient of its inputs."""
    leaf = inputs.clone().requires_grad_()
    result = way(leaf)
    result.backward(upstream)
    assert leaf.grad is not None
    return [result.detach(), leaf.grad]


def learn(bench: Bench) -> Iterator[Finding]:
    """Train on the CPU in float32, then on the device in both arithmetics."""
    size = bench.pick(PAIRS, 8)
    num_steps = bench.pick(STEPS, 2)
    tables = {
        split: builtin_table(bench.folder / split, count, split)
        for split, count in (("train", num_steps * size), ("test", bench.pick(200, 10)))
    }
    train: Any = functools.partial(
        train_on, tables, size, config=ModelConfig(quantization="nf4"), lora=LORA
    )
    cpu = train(torch.device("cpu"), torch.float32)
    yield Finding(table=LEARNING, values={"on": "CPU, float32", **figures(cpu)})

    def beside(name: str) -> tuple[Values, bool]:
        run = train(bench.device, getattr(torch, name))
        off = max(abs(a - b) for a, b in zip(run.losses, cpu.losses, strict=True))
        return {**figures(run), "loss off": off}, off <= SAME_LOSS[name]

    for name in ("float32", "bfloat16"):
        labels = {"on": f"{bench.device.type}, {name}"}
        yield attempt(LEARNING, labels, functools.partial(beside, name))


def cost(bench: Bench, quantization: Any) -> tuple[Values, None]:
    """Return the milliseconds of a pass, its memory, and that of the weights."""
    model = build_on(bench.device, shape(bench, layers=3), bench.folder, dtype=torch.bfloat16)
    config = ModelConfig(quantization=quantization)
    choose_trained(model, config, LORA, seed=0, dtype=torch.bfloat16)
    model.to(bench.device)
    bench.forget_peak()
    held = bench.peak_gb
    seconds, memory = time_passes(bench, model)
    return {"ms": 1000 * seconds, "GB of weights": held, "GB above": memory}, None
