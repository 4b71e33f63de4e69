"""Steps of training's own engine at ZeRO stages on one rank: what DeepSpeed takes of a host."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Iterator

import torch

from gpu.alone import build_engine, forget_engines
from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt
from gpu.liger import untouched
from gpu.shapes import NARROW, WIDE, Workload, build_on
from gpu.trace import record
from rm_ray.config.sections.cluster import ZeroStage
from rm_ray.model.liger import apply_liger
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train.step import train_step

STAGES: tuple[ZeroStage, ...] = (0, 2, 3)

SIZES = (1_800, 16_384)
"""Distinct tokens of a step: so few that a GPU may wait for the host, and the usual number."""

TIMED = 3
"""Steps that are timed, after one that is not."""

LEAST_S = 20.0
"""With less than this left of the part's time no setting is begun."""


def measure(bench: Bench, *, layers: int) -> Iterator[Finding]:
    """Take steps at every stage and size that there is time for."""
    table = (
        f"Training's engine on one rank, {layers} of the layers above, packed; idle is the share "
        "of a step in which no kernel ran, as while DeepSpeed's Python does"
    )
    for stage in STAGES:
        for tokens in SIZES:
            labels = {"ZeRO": stage, "tokens a step": tokens}
            if bench.left < LEAST_S:
                yield Finding(table=table, values={**labels, "failed": "no time was left"})
                continue
            with untouched():
                yield attempt(
                    table, labels, functools.partial(take_steps, bench, stage, tokens, layers)
                )
            forget_engines()
            gc.collect()  # an engine and its hooks hold each other


def take_steps(bench: Bench, stage: ZeroStage, tokens: int, layers: int) -> tuple[Values, None]:
    """Return how fast steps are, and how much of one more the device is idle."""
    bench.forget_peak()
    fields = {**bench.pick(WIDE, NARROW), "num_hidden_layers": layers}
    dtype = torch.bfloat16 if stage > 0 else torch.float32  # as training builds it
    model = build_on(bench.device, fields, bench.folder, dtype=dtype)
    apply_liger(model, "on" if bench.liger_runs else "off", on_gpu=True)
    work = Workload.of(
        bench,
        tokens=bench.pick(tokens, tokens // 128),
        steps=TIMED + 2,
        vocabulary=model.classifier.config.vocab_size,
    )
    engine = build_engine(bench, model, zero_stage=stage)
    take = functools.partial(
        train_step,
        engine,
        BradleyTerry(),
        num_groups=work.pairs_per_step,
        learning_rate=1e-5,
    )
    ready = functools.partial(work.ready, layout="packed", kernel="varlen", device=bench.device)
    seconds, speeds = [], []
    for step in range(TIMED + 1):
        batches = ready(step)
        bench.synchronize()
        started = time.perf_counter()
        take(batches)
        bench.synchronize()
        seconds.append(time.perf_counter() - started)
        speeds.append(int(work.lengths_of(step).distinct.sum()) / seconds[-1])
    batches = ready(TIMED + 1)
    trace = record(functools.partial(take, batches), bench.device)
    values = {
        "ms a step": 1000 * statistics.median(seconds[1:]),
        "distinct tokens/s": statistics.median(speeds[1:]),
        "idle": trace.idle_share,
        "GB": bench.peak_gb,
    }
    return values, None
