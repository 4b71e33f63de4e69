"""A hundred steps of the built-in pairs on the device, beside the same on the CPU in float32."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from plain_engine import PlainEngine
from tables import builtin_table

from gpu.bench import Bench
from gpu.finding import Finding, Values, attempt
from rm_ray.batches.collate import Collator
from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan, PlanSettings
from rm_ray.config.sections.lora import LoraConfig
from rm_ray.config.sections.model import ModelConfig
from rm_ray.config.sections.optimizer import OptimizerConfig
from rm_ray.data.cache.token_table import TokenTable
from rm_ray.model.attention import choose_kernel, head_size
from rm_ray.model.build import build_reward_model
from rm_ray.model.liger import apply_liger
from rm_ray.model.tuning.trainable import choose_trained
from rm_ray.objectives.bradley_terry import BradleyTerry
from rm_ray.train.optimizer import learning_rate_schedule
from rm_ray.train.step import train_step

STEPS, PAIRS, HELD_OUT = 100, 64, 500

SAME_LOSS = {"float32": 1e-3, "bfloat16": 5e-2}
"""Most that the loss of any of the first 20 steps may be off; later ones drift apart by rounding
that training amplifies."""

SAME_ACCURACY = 0.02
"""Most that the accuracy over held-out pairs may be off in the end."""

SETTLED = 5
"""Steps after which nothing new is kept on the device."""

TABLE = f"{STEPS} steps of {PAIRS} built-in pairs, the debug recipe's model"


BUILTIN, NO_ADAPTERS = ModelConfig(), LoraConfig()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a training measured."""

    losses: list[float]
    accuracy: float
    pairs_per_second: float
    memory: list[int]
    """Bytes held on the device after each step."""


def measure(bench: Bench) -> Iterator[Finding]:
    """Train on the CPU, then on the device in both arithmetics."""
    num_steps, size = bench.pick(STEPS, SETTLED + 1), bench.pick(PAIRS, 12)
    tables = {
        split: builtin_table(bench.folder / split, count, split)
        for split, count in (("train", num_steps * size), ("test", bench.pick(HELD_OUT, 20)))
    }
    train = functools.partial(train_on, tables, size)
    cpu = train(torch.device("cpu"), torch.float32)
    yield Finding(table=TABLE, values={"on": "CPU, float32", **figures(cpu)})
    for name in ("float32", "bfloat16"):
        yield attempt(
            TABLE,
            {"on": f"{bench.device.type}, {name}"},
            functools.partial(beside, bench, train, cpu, name),
        )


def beside(bench: Bench, train: Any, cpu: Run, name: str) -> tuple[Values, bool | None]:
    """Train in an arithmetic and compare."""
    run: Run = train(bench.device, getattr(torch, name))
    pairs = list(zip(run.losses, cpu.losses, strict=True))
    early = max(abs(a - b) for a, b in pairs[:20])
    settled = run.memory[SETTLED:]
    grown = max(settled) - settled[0]
    values = {
        **figures(run),
        "loss off, first 20": early,
        "loss off, all": max(abs(a - b) for a, b in pairs),
        f"bytes grown from step {SETTLED} on": grown,
    }
    same = early <= SAME_LOSS[name] and abs(run.accuracy - cpu.accuracy) <= SAME_ACCURACY
    return values, same and grown <= 0


def figures(run: Run) -> Values:
    """Return what a run is described by."""
    return {
        "first loss": run.losses[0],
        "last losses": statistics.mean(run.losses[-5:]),
        "held-out accuracy": run.accuracy,
        "pairs/s": run.pairs_per_second,
    }


def train_on(
    tables: dict[str, tuple[TokenTable, Any]],
    size: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    config: ModelConfig = BUILTIN,
    lora: LoraConfig = NO_ADAPTERS,
) -> Run:
    """Train as a worker does, without Ray."""
    table, tokenizer = tables["train"]
    optimizer = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_steps=10)
    rate = learning_rate_schedule(optimizer, plan_of(table, size).steps.total)
    model = build_reward_model(config, tokenizer, seed=0)
    choose_trained(model, config, lora, seed=0, dtype=dtype)
    apply_liger(model, "auto", on_gpu=device.type == "cuda")
    engine: Any = PlainEngine(model, optimizer, device=device, dtype=dtype)
    collator = Collator(
        layout="packed",
        kernel=choose_kernel(device, dtype, head_size=head_size(model.classifier.config)),
        pad_token_id=tokenizer.pad_token_id,
        device=device,
    )
    losses, memory = [], []
    started = time.perf_counter()
    for batches in steps_of(table, size, collator):  # enumerate would keep the last one
        measured = train_step(
            engine,
            BradleyTerry(),
            batches,
            num_groups=size,
            learning_rate=rate(len(losses)),
        )
        losses.append(measured.groups.means("rm")["rm/loss"])
        del batches
        memory.append(torch.cuda.memory_allocated() if device.type == "cuda" else 0)
    seconds = time.perf_counter() - started
    accuracy = accuracy_of(engine, steps_of(tables["test"][0], size, collator))
    speed = len(losses) * size / seconds
    return Run(losses=losses, accuracy=accuracy, pairs_per_second=speed, memory=memory)


def steps_of(table: TokenTable, size: int, collator: Collator) -> Iterator[list[Any]]:
    """Yield the steps of one epoch, of so many pairs each, on the device."""
    plan = plan_of(table, size)
    for step in range(plan.steps.total):
        yield collator.move(collator.lay_out(load_step(table, plan, step, rank=0, world_size=1)))


def plan_of(table: TokenTable, size: int) -> Plan:
    """Return the debug recipe's steps."""
    settings = PlanSettings(global_batch_size=size, tokens_per_micro_batch=8_192)
    return Plan(lengths=table.lengths, settings=settings)


def accuracy_of(engine: PlainEngine, steps: Iterator[list[Any]]) -> float:
    """Return the share of held-out pairs whose chosen reward is the higher one."""
    correct: list[bool] = []
    with torch.no_grad():
        for batches in steps:
            for batch in batches:
                chosen, rejected = engine.outputs(batch.groups).reshape(-1, 2).T
                correct += (chosen > rejected).tolist()
    return float(np.mean(correct))
