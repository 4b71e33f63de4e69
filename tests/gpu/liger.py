"""Liger's kernels beside the plain ones: the same numbers, and what they are worth."""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt
from gpu.kernels import errors_of
from gpu.shapes import Workload, build_on, set_layout, set_recomputation, shape
from gpu.syncs import pass_through
from rm_ray.config.sections.batch import Layout
from rm_ray.model.liger import apply_liger
from rm_ray.model.reward_model import RewardModel

FAMILIES = ("llama", "qwen3")

MOST_ERROR = 1e-4
"""Most that rewards and gradients may be off in float32, over their largest number."""

NUMBERS = (
    "Numbers in float32, 4 layers, the last one trimmed where packed: largest errors over the "
    "largest number, fused against plain"
)
WORTH = "What they are worth: a forward and backward pass of 16k tokens, layers of 8B width"


def measure(bench: Bench) -> Iterator[Finding]:
    """Compare numbers in every setting; then time and memory."""
    if not bench.liger_runs:
        yield Finding(table=NUMBERS, values={"note": "Liger needs a GPU: plain beside plain here"})
    settings = [
        (family, layout, recomputed)
        for family in FAMILIES
        for layout in ("packed", "padded")
        for recomputed in (False, True)
    ]
    for family, layout, recomputed in bench.some(settings, 2):
        labels = {"family": family, "layout": layout, "recomputed": recomputed}
        yield attempt(NUMBERS, labels, functools.partial(compare, bench, *labels.values()))
    for weights in ("bfloat16", "float32"):
        for recomputed in (False, True):
            labels = {
                "arithmetic": "autocast" if weights == "float32" else "bf16 weights",
                "recomputed": recomputed,
            }
            yield attempt(WORTH, labels, functools.partial(worth, bench, weights, recomputed))


@contextmanager
def untouched(families: tuple[str, ...] = FAMILIES) -> Iterator[None]:
    """Give transformers its own modules back, which Liger replaces for all later models."""
    modules = [importlib.import_module(f"transformers.models.{f}.modeling_{f}") for f in families]
    before = [dict(vars(module)) for module in modules]
    try:
        yield
    finally:
        for module, names in zip(modules, before, strict=True):
            vars(module).update(names)


def compare(bench: Bench, family: str, layout: Layout, recomputed: bool) -> tuple[Values, bool]:
    """Return how far rewards and gradients are apart."""
    fields = {
        "model_type": family, "hidden_size": bench.pick(256, 64), "intermediate_size": 512,
        "vocab_size": 1024, "num_hidden_layers": bench.pick(4, 2), "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": bench.pick(64, 16),
    }  # fmt: skip
    found: list[tuple[Tensor, list[Tensor]]] = []
    with untouched():
        for fused in (False, True):
            torch.manual_seed(0)
            model = build_on(bench.device, fields, bench.folder, dtype=torch.float32)
            apply_liger(model, "on" if fused and bench.liger_runs else "off", on_gpu=True)
            set_layout(model, layout)
            set_recomputation(model, recomputed)
            work = Workload.of(bench, tokens=bench.pick(4_096, 64), steps=1, vocabulary=1024)
            batch = work.ready(0, layout=layout, kernel="grouped", device=bench.device)[0]
            rewards = model(batch.groups)
            torch.autograd.backward(rewards.square().sum())
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            found.append((rewards.detach(), gradients))
    (plain, plain_gradients), (fused_rewards, fused_gradients) = found
    of_rewards = errors_of([fused_rewards], [plain])[0]
    of_gradients = max(errors_of(fused_gradients, plain_gradients))
    values = {"rewards": of_rewards, "gradients": of_gradients}
    return values, max(of_rewards, of_gradients) <= MOST_ERROR


def worth(bench: Bench, weights: str, recomputed: bool) -> tuple[Values, bool | None]:
    """Return milliseconds and memory without and with Liger, the last layer trimmed."""
    fields = shape(bench, layers=3)
    values: Values = {}
    with untouched():
        for name, choice in (("plain", "off"), ("fused", bench.pick("on", "off"))):
            model = build_on(bench.device, fields, bench.folder, dtype=getattr(torch, weights))
            apply_liger(model, choice, on_gpu=True)
            set_recomputation(model, recomputed)
            seconds, memory = time_passes(bench, model)
            values |= {f"ms {name}": 1000 * seconds, f"GB {name}": memory}
            del model
    if bench.is_dry:
        return values, None
    faster, less = values["ms fused"] < values["ms plain"], values["GB fused"] < values["GB plain"]
    return values, faster and less


def time_passes(bench: Bench, model: RewardModel) -> tuple[float, float]:
    """Return the median seconds of a pass, and the GB that it takes above the weights."""
    vocabulary: Any = model.classifier.config.vocab_size
    tokens, steps = bench.pick(16_384, 64), bench.pick(4, 2)
    work = Workload.of(bench, tokens=tokens, steps=steps, vocabulary=vocabulary)
    seconds, held = [], 0.0
    bench.forget_peak()
    for step in range(steps):
        batch = work.ready(step, layout="packed", kernel="varlen", device=bench.device)[0]
        bench.reset_peak()
        held = bench.peak_gb
        bench.synchronize()
        started = time.perf_counter()
        pass_through(bench, model, batch.groups)
        bench.synchronize()
        seconds.append(time.perf_counter() - started)
        model.zero_grad()
    return statistics.median(seconds[1:]), bench.peak_gb - held
