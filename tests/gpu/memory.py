"""The memory that preflight estimates, beside what PyTorch's allocator counts in training."""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import memory_estimate
import numpy as np
import torch
from core import write_model
from memory_estimate import Case
from pair_set import pairs_that_share
from turns import resident_bytes

from gpu.alone import join_alone
from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt
from gpu.liger import untouched

MOST_ERROR = memory_estimate.MOST_ERROR

MODEL = {"hidden": 2048, "layers": 12, "heads": 16, "key_value_heads": 4, "intermediate": 5632,
         "vocab": 32_000}  # fmt: skip
"""0.6 billion parameters: more than one of DeepSpeed's buckets holds, and loaded in seconds."""

SMALL = {"hidden": 64, "layers": 2, "heads": 4, "key_value_heads": 2, "intermediate": 128,
         "vocab": 512}  # fmt: skip

TABLE = (
    "Preflight's estimate beside the most memory of tensors; reserved is what the allocator took "
    "from the device for them, fragments included"
)


def cases() -> list[Case]:
    """Return seven settings, the one of the large recipes and that of adapters first."""
    many: dict[str, Any] = {"ranks": 1, "on_gpu": True, "pairs": 8, "tokens": 700}
    half: dict[str, Any] = {**many, "dtype": "bfloat16"}
    return [
        Case(zero_stage=2, liger=True, **half),
        Case(zero_stage=0, liger=True, rank=64, **half),
        Case(zero_stage=0, liger=True, **half),
        Case(zero_stage=1, **half),
        Case(zero_stage=0, layout="padded", **half),
        Case(zero_stage=0, **{**many, "pairs": 4}),
        # Last: under ZeRO-3 transformers shards all later models while they are built.
        Case(zero_stage=3, liger=True, checkpointing=True, **half),
    ]


def measure(bench: Bench) -> Iterator[Finding]:
    """Train in every setting for some steps."""
    join_alone(bench)
    for case in bench.some(cases(), 2):
        if bench.is_dry:
            case = replace(case, on_gpu=False, liger=False, pairs=2, tokens=24)
        with untouched():
            yield attempt(TABLE, {"training": case.name}, functools.partial(compare, bench, case))


def compare(bench: Bench, case: Case) -> tuple[Values, bool | None]:
    """Train and compare; on a CPU there is no allocator that counts, and so no verdict."""
    options = argparse.Namespace(**bench.pick(MODEL, SMALL))
    some = pairs_that_share(0.4, count=case.a_step, tokens=case.tokens, vocabulary=options.vocab)
    pairs: Any = some.select(np.tile(np.arange(case.a_step), case.steps))
    model = write_model(options, pairs.vocabulary.size, bench.folder)
    expected = memory_estimate.expect(case, model, pairs)
    gc.collect()
    bench.forget_peak()
    before = 0 if bench.is_dry else torch.cuda.memory_allocated()
    memory_estimate.train(case, model, pairs, steps=case.steps)
    bench.synchronize()
    most = resident_bytes("VmHWM") if bench.is_dry else torch.cuda.max_memory_allocated()
    reserved = 0 if bench.is_dry else torch.cuda.max_memory_reserved()
    error = expected.device / (most - before) - 1
    values = {
        "peak at": expected.peak.name,
        "estimated GB": expected.device / 1e9,
        "measured GB": (most - before) / 1e9,
        "reserved GB": reserved / 1e9,
        "error": f"{error:+.1%}",
    }
    gc.collect()
    return values, None if bench.is_dry else abs(error) <= MOST_ERROR
