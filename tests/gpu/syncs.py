"""Where the CPU waits for the GPU: nowhere in forward and backward, and so often in a step."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from plain_engine import PlainEngine
from torch.utils._python_dispatch import TorchDispatchMode

from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt, guard
from gpu.shapes import Workload, build_on, set_layout, set_recomputation, shape
from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.model.liger import apply_liger
from rm_ray.model.reward_model import RewardModel
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train.collectives import split_votes, sum_with_votes
from rm_ray.train.step import accumulate_gradients, check_step

PASSES = (
    "Forward and backward of a micro-batch under set_sync_debug_mode('error'), with autocast; "
    "operators that read a value are counted on the CPU's side"
)
STEP = (
    "A whole step under 'warn', of the plain engine and of training's without ZeRO: where it waited"
)

VOTES = (False, False)
"""What a rank says in every step about stopping."""

READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique_dim"}
"""Operators whose result the CPU has to know."""


class Reads(TorchDispatchMode):
    """Counts the operators that read a value, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in READS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def measure(bench: Bench) -> Iterator[Finding]:
    """Try every setting; then list where a step waits."""
    fields = {**shape(bench, layers=4), "vocab_size": bench.pick(32_000, 512)}
    for liger in (False, True):
        model = build_on(bench.device, fields, bench.folder, dtype=torch.float32)
        apply_liger(model, "on" if liger and bench.liger_runs else "off", on_gpu=True)
        for recomputed, layout in itertools.product((False, True), ("packed", "padded")):
            labels = {"Liger": liger, "recomputed": recomputed, "layout": layout}
            yield attempt(
                PASSES, labels, functools.partial(both_ways, bench, model, recomputed, layout)
            )
        if liger:
            plain = PlainEngine(model, OptimizerConfig(), device=bench.device, dtype=torch.bfloat16)
            yield from guard(STEP, {"engine": "plain"}, whole_step(bench, model, plain, "plain"))
            yield from guard(STEP, {"engine": "training's"}, whole_step_of_training(bench, model))
        del model


def both_ways(
    bench: Bench, model: RewardModel, recomputed: bool, layout: Layout
) -> tuple[Values, bool | None]:
    """Go forward and back; padded batches may read values, which transformers does."""
    work = Workload.of(
        bench, tokens=bench.pick(8_192, 128), steps=2, vocabulary=model.classifier.config.vocab_size
    )
    set_layout(model, layout)
    set_recomputation(model, recomputed)
    for step in range(2):
        batch = work.ready(step, layout=layout, kernel="varlen", device=bench.device)[0]
        forward_and_backward = functools.partial(pass_through, bench, model, batch.groups)
        if step == 0:
            forward_and_backward()  # compiles kernels, which may wait
            bench.synchronize()
    with Reads() as reads:
        forward_and_backward()
    bench.synchronize()
    waited = "" if bench.is_dry else first_wait(forward_and_backward)
    values = {"values read": sum(reads.seen.values()), "waits": waited or "none"}
    return values, not reads.seen and not waited if layout == "packed" else None


def pass_through(bench: Bench, model: RewardModel, groups: Any) -> None:
    """Compute rewards, loss and gradients."""
    with torch.autocast(bench.device.type, torch.bfloat16):
        rewards = model(groups)
    losses = BradleyTerry()(rewards, groups.labels)
    torch.autograd.backward(losses.groups.sum())


def first_wait(compute: Callable[[], None]) -> str:
    """Return PyTorch's word on the first wait; nothing where there is none."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        compute()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


@contextmanager
def warnings_of_waits(on_gpu: bool) -> Iterator[Counter[str]]:
    """Count where waits are warned of; there is no such warning on a CPU."""
    places: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            file = Path(warning.filename)
            places[f"{'/'.join(file.parts[-3:])}:{warning.lineno}"] += 1


def whole_step_of_training(bench: Bench, model: RewardModel) -> Iterator[Finding]:
    """List where a step of training's engine waits; the model is that engine's from then on."""
    from gpu.alone import build_engine  # needs Accelerate, which the rest of this part does not

    engine = build_engine(bench, model, zero_stage=0)
    yield from whole_step(bench, model, engine, "training's")


def whole_step(bench: Bench, model: RewardModel, engine: Any, name: str) -> Iterator[Finding]:
    """List where a step waits, and how often."""
    work = Workload.of(
        bench, tokens=bench.pick(8_192, 128), steps=2, vocabulary=model.classifier.config.vocab_size
    )
    set_layout(model, "packed")
    set_recomputation(model, False)
    for step in range(2):
        batches = work.ready(step, layout="packed", kernel="varlen", device=bench.device)
        bench.synchronize()
        with warnings_of_waits(not bench.is_dry) as places, Reads() as reads:
            gradients = accumulate_gradients(
                engine, BradleyTerry(), batches, num_groups=work.pairs_per_step
            )
            together = sum_with_votes(gradients.sums, VOTES)
            numbers, grad_norm = engine.step(1e-5, together)
            sums, _ = split_votes(numbers, len(VOTES))
            check_step(gradients, sums, grad_norm)
    counts = [("values read, all", reads.seen.total()), *places.most_common()]
    for place, times in counts:
        yield Finding(table=STEP, values={"engine": name, "where": place, "times": times})
