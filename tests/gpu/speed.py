"""Steps of layers of 8 billion parameters' width, on pairs of real lengths, in every setting."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from plain_engine import PlainEngine
from torch import Tensor

from gpu.bench import Bench
from gpu.compiled import compile_layers, count_graphs
from gpu.finding import Finding, Values, attempt, guard
from gpu.half_engine import HalfEngine
from gpu.liger import untouched
from gpu.shapes import NARROW, WIDE, Workload, build_on, set_layout, set_recomputation
from gpu.trace import Trace, record
from rm_ray.batches.collate import Collator, ReadyMicroBatch, unlabelled
from rm_ray.batches.padding import PaddedGroups
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.flops import ModelFlops
from rm_ray.model.liger import apply_liger
from rm_ray.model.reward_model import RewardModel
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train.determinism import compute_deterministically
from rm_ray.train.step import train_step
from rm_ray.train.throughput import measure_matrix_peak

PEAK = 989e12
"""FLOP/s of an H100 SXM in dense bfloat16, by its maker's data sheet."""

BEST_SHARE = 0.39
"""What torchtitan reaches on 8 H100s, compiled: 9,000 distinct tokens/s of an 8B reward model."""

GOAL, GOAL_RECOMPUTED, GOAL_TOKENS = 0.50, 0.40, 16_384
"""Least share of the measured peak at so many tokens; recomputed activations count as waste."""

TIMED = 3
"""Steps that are timed, after one that is not."""

LEAST_S = 12.0
"""With less than this left of the part's time no setting is begun."""

LEAST_COMPILED_S = 40.0
"""The same for a compiled setting, whose first step takes much of it."""

TRL_BATCH = 8
"""Pairs of a forward pass in TRL 1.16 as it comes (``per_device_train_batch_size``)."""

SHARES = "The first setting's step: share of no kernel at all, and of kinds in the others"

Weights = Literal["bfloat16", "float32"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to take the same steps."""

    tokens: int = GOAL_TOKENS
    way: Literal["packed", "padded", "TRL's"] = "packed"
    weights: Weights = "bfloat16"
    liger: bool = True
    recomputed: bool = False
    compiled: bool = False
    deterministic: bool = False

    @property
    def layout(self) -> Layout:
        """The layout of its batches."""
        return "packed" if self.way == "packed" else "padded"

    @property
    def labels(self) -> Values:
        """What it is called in a table."""
        return {
            "tokens a step": self.tokens,
            "pairs": self.way,
            "arithmetic": "autocast" if self.weights == "float32" else "bf16 weights",
            "Liger": self.liger,
            "recomputed": self.recomputed,
            "compiled": self.compiled,
            "deterministic": self.deterministic,
        }

    @property
    def least_seconds(self) -> float:
        """What must be left of the part's time to begin it."""
        return LEAST_COMPILED_S if self.compiled else LEAST_S


def groups() -> list[list[Setting]]:
    """Return the settings, each group on one model, those worth most first."""
    zero, autocast = Setting(), Setting(weights="float32")
    trl = Setting(way="TRL's", weights="float32", liger=False)
    return [
        [
            zero,
            replace(zero, recomputed=True),
            replace(zero, tokens=4_096),
            replace(zero, way="padded"),
            replace(zero, deterministic=True),
            replace(zero, tokens=32_768, recomputed=True),
            replace(zero, tokens=32_768),
        ],
        [autocast, replace(autocast, way="padded")],
        [
            replace(trl, recomputed=True),
            trl,
            replace(autocast, liger=False),
            replace(autocast, liger=False, recomputed=True),
        ],
        [
            replace(zero, liger=False),
            replace(zero, liger=False, compiled=True),
            replace(zero, liger=False, compiled=True, tokens=4_096),
        ],
    ]


def measure(bench: Bench) -> Iterator[Finding]:
    """Measure every setting that there is time for, and profile the first one."""
    layers = choose_layers(bench)
    for group in groups():
        with untouched():
            # What may fail outside of a setting is the set-up, before the first one.
            findings = measure_group(bench, group, layers)
            yield from guard(table_of(layers), group[0].labels, findings)
        bench.forget_peak()
    if find_spec("deepspeed"):
        yield from guard("Steps of training's engine", {}, measure_zero(bench, layers))


def measure_zero(bench: Bench, layers: int) -> Iterator[Finding]:
    """Measure training's own engine, which needs Accelerate and DeepSpeed."""
    from gpu import zero_steps

    yield from zero_steps.measure(bench, layers=layers)


def measure_group(bench: Bench, group: Sequence[Setting], layers: int) -> Iterator[Finding]:
    """Measure the settings of one model, and compare them; profile the first of all."""
    measured: dict[Setting, Values] = {}
    product = bench.pick(torch.bfloat16, torch.float32)  # CPUs have no units for half precision
    peak = measure_matrix_peak(bench.device, product)
    model = build(bench, group[0], layers)
    for setting in group:
        labels = {**setting.labels, "Liger": setting.liger and bench.liger_runs}
        if bench.left < setting.least_seconds:
            yield Finding(table=table_of(layers), values={**labels, "failed": "no time was left"})
            continue
        finding = attempt(
            table_of(layers),
            labels,
            functools.partial(measure_setting, bench, model, setting, layers, peak),
        )
        yield finding
        if "failed" in finding.values:
            continue
        measured[setting] = finding.values
        if setting == Setting():
            yield from guard(SHARES, {}, profile_step(bench, model, setting))
        yield from compare(measured, setting)


def table_of(layers: int) -> str:
    """Return the title of the main table."""
    return (
        f"Llama layers of 8B width, {layers} of 32; goals at {GOAL_TOKENS:,} tokens packed: {GOAL} "
        f"of the measured matrix peak, recomputed {GOAL_RECOMPUTED}. To beat: {BEST_SHARE:.0%} of "
        f"{PEAK / 1e12:.0f} TFLOP/s, or {9_000 * 32 // layers:,} distinct tokens/s of these layers "
        f"({6_700 * 32 // layers:,} recomputed)"
    )


def choose_layers(bench: Bench) -> int:
    """Return as many layers as train on 32k tokens in this GPU's memory.

    A weight takes 20 bytes at the most, with gradients, masters and AdamW's state, a token of a
    layer about 230 kB of activations.
    """
    if bench.is_dry:
        return 2
    embedding, layer = 20 * 128_256 * 4_096, 20 * 218_112_000 + 32_768 * 230_000
    room = 0.85 * torch.cuda.get_device_properties(0).total_memory
    return max(2, min(12, int((room - embedding) / layer)))


def build(bench: Bench, setting: Setting, layers: int) -> RewardModel:
    """Build a group's model."""
    fields = {**bench.pick(WIDE, NARROW), "num_hidden_layers": layers}
    dtype = getattr(torch, setting.weights)
    model = build_on(bench.device, fields, bench.folder, dtype=dtype)
    apply_liger(model, "on" if setting.liger and bench.liger_runs else "off", on_gpu=True)
    return model


def measure_setting(
    bench: Bench, model: RewardModel, setting: Setting, layers: int, peak: float
) -> tuple[Values, bool | None]:
    """Take steps, and return how fast they were; of goals only those of this setting count."""
    model.zero_grad()  # a setting that failed leaves some
    work = workload(bench, model, setting)
    set_layout(model, setting.layout)
    set_recomputation(model, setting.recomputed)
    if setting.compiled:
        compile_layers(model, on_gpu=not bench.is_dry)
    take = stepper(bench, model, setting, work)
    needed = ModelFlops.of(model.classifier)
    speeds, tokens, seconds, batches = [], [], [], None
    bench.forget_peak()
    for step in range(bench.pick(TIMED, 1) + 1):
        batches = batches_of(bench, setting, work, step)
        bench.synchronize()
        started = time.perf_counter()
        with deterministic(setting.deterministic):
            take(batches)
        bench.synchronize()
        lengths = work.lengths_of(step)
        seconds.append(time.perf_counter() - started)
        speeds.append(float(needed.training(lengths).sum()) / seconds[-1])
        tokens.append(int(lengths.distinct.sum()) / seconds[-1])
    speed, per_second = statistics.median(speeds[1:]), statistics.median(tokens[1:])
    distinct = int(lengths.distinct.sum())
    best = (6_700 if setting.recomputed else 9_000) * 32 / layers
    values = {
        "ms a step": 1000 * statistics.median(seconds[1:]),
        "distinct tokens/s": per_second,
        "over the best known": per_second / best,
        "computed/distinct": computed(batches) / distinct,
        "TFLOP/s": speed / 1e12,
        "of the peak": speed / peak,
        "peak TFLOP/s": peak / 1e12,
        "GB": bench.peak_gb,
    }
    if setting.compiled:
        values["graphs compiled"] = count_graphs()
    goal = GOAL_RECOMPUTED if setting.recomputed else GOAL
    has_goal = setting == Setting(weights=setting.weights, recomputed=setting.recomputed)
    return values, speed / peak >= goal if has_goal and not bench.is_dry else None


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Compute as under ``run.deterministic``, which run.sh has told cuBLAS."""
    if on:
        compute_deterministically()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def workload(bench: Bench, model: RewardModel, setting: Setting) -> Workload:
    """Return the steps of a size, the same for every setting."""
    return Workload.of(
        bench,
        tokens=bench.pick(setting.tokens, setting.tokens // 128),
        steps=TIMED + 1,
        vocabulary=model.classifier.config.vocab_size,
    )


Batches = Sequence[ReadyMicroBatch] | Sequence[PaddedGroups]


def batches_of(bench: Bench, setting: Setting, work: Workload, step: int) -> Any:
    """Return a step's batches on the device."""
    if setting.way != "TRL's":
        return work.ready(step, layout=setting.layout, kernel="varlen", device=bench.device)
    return trl_batches(work, step, bench.device)


def trl_batches(work: Workload, step: int, device: torch.device) -> list[PaddedGroups]:
    """Return right-padded batches of 8 pairs in their order, as TRL's collator makes them."""
    collator = Collator(
        layout="padded",
        kernel="grouped",
        pad_token_id=work.pairs.vocabulary.pad_token_id,
        device=device,
    )
    end = (step + 1) * work.pairs_per_step
    batches: list[Any] = []
    for first in range(step * work.pairs_per_step, end, TRL_BATCH):
        pairs = work.pairs.gather(np.arange(first, min(first + TRL_BATCH, end)))
        batches.append(collator.to_device(collator.arrange(pairs, unlabelled(pairs))))
    return batches


def computed(batches: Any) -> int:
    """Return the positions that are computed."""
    return sum(
        (each.groups if isinstance(each, ReadyMicroBatch) else each).input_ids.numel()
        for each in batches
    )


def stepper(bench: Bench, model: RewardModel, setting: Setting, work: Workload) -> Any:
    """Return what takes a step, with an optimizer of its own."""
    optimizer = OptimizerConfig(learning_rate=1e-5)
    engine: Any
    if setting.weights == "bfloat16":
        engine = HalfEngine(model, optimizer, device=bench.device)
    else:
        engine = PlainEngine(model, optimizer, device=bench.device, dtype=torch.bfloat16)
    if setting.way == "TRL's":
        return functools.partial(step_like_trl, engine, model, work.pairs_per_step)
    return functools.partial(
        train_step, engine, BradleyTerry(), num_groups=work.pairs_per_step, learning_rate=1e-5
    )


def step_like_trl(
    engine: PlainEngine, model: RewardModel, num_pairs: int, batches: Sequence[PaddedGroups]
) -> None:
    """Take a step as TRL's trainer does: transformers' classifier, its pooling and attention."""
    for batch in batches:
        with torch.autocast(engine.device.type, dtype=torch.bfloat16):
            logits: Tensor = model.classifier(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        chosen, rejected = logits.squeeze(-1).chunk(2)
        engine.backward(-F.logsigmoid(chosen - rejected).sum() / num_pairs)
    engine.step(1e-5, torch.zeros(0, dtype=torch.float64, device=engine.device))


def profile_step(bench: Bench, model: RewardModel, setting: Setting) -> Iterator[Finding]:
    """Say where the time of a step goes."""
    work = workload(bench, model, setting)
    take = stepper(bench, model, setting, work)
    take(batches_of(bench, setting, work, 0))
    batches = batches_of(bench, setting, work, 1)
    trace: Trace = record(lambda: take(batches), bench.device)
    shares = {kind: share for kind, share in trace.shares().items() if share > 0}
    yield Finding(table=SHARES, values={"idle": trace.idle_share, **shares})
    for name, runs, share in trace.longest(12):
        yield Finding(
            table="Its kernels with the most time",
            values={"kernel": name[:90], "runs": runs, "share": share},
        )


def compare(measured: dict[Setting, Values], setting: Setting) -> Iterator[Finding]:
    """Say what a setting is worth beside the one it differs from, once both are measured."""
    values = measured[setting]
    packed = measured.get(replace(setting, way="packed"))
    if setting.way == "padded" and packed:
        ratio = values["ms a step"] / packed["ms a step"]
        tokens = values["computed/distinct"] / packed["computed/distinct"]
        yield Finding(
            table="Packed over padded, whose goal is the ratio of their tokens",
            values={"weights": setting.weights, "times as fast": ratio, "ratio of tokens": tokens},
            ok=ratio >= tokens if packed["GB"] else None,
        )
    free = measured.get(replace(setting, deterministic=False))
    if setting.deterministic and free:
        yield Finding(
            table="Deterministic kernels beside the others",
            values={"times as long": values["ms a step"] / free["ms a step"]},
        )
