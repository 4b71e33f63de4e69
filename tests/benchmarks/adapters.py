"""Adapters and other parts of a model beside all of it: held-out accuracy, time and memory.

    python tests/benchmarks/adapters.py [--runs 3] [--steps 150] [--ways full lora]

Each way trains the same steps of the built-in pairs, in a process of its own, in turn. All start
from the same random weights, in files, of a Llama of 4 layers x 256 in float32: there is nothing
that adapters could build upon, so their accuracy is what they learn by themselves. Memory is the
most resident memory of the process above what it had before the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, markdown_table, print_report

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from plain_engine import PlainEngine  # noqa: E402
from tables import builtin_table, ready_step  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.config.sections.lora import LoraConfig  # noqa: E402
from rm_ray.config.sections.model import ResolvedModel  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.tuning.trainable import choose_trained  # noqa: E402
from rm_ray.objectives.bradley_terry import BradleyTerry  # noqa: E402
from rm_ray.train.optimizer import learning_rate_schedule  # noqa: E402
from rm_ray.train.step import train_step  # noqa: E402

MODEL = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip


ADAPTERS, NO_ADAPTERS = LoraConfig(rank=16, alpha=32.0), LoraConfig()


@dataclass(frozen=True, kw_only=True)
class Way:
    """What is trained, and at which rate."""

    learning_rate: float
    model: dict[str, Any]
    lora: LoraConfig = NO_ADAPTERS


WAYS = {
    "full": Way(learning_rate=1e-3, model={}),
    "lora": Way(learning_rate=3e-3, model={}, lora=ADAPTERS),
    "qlora": Way(learning_rate=3e-3, model={"quantization": "nf4"}, lora=ADAPTERS),
    "last:2": Way(learning_rate=1e-3, model={"trainable": "last:2"}),
    "head": Way(learning_rate=1e-2, model={"trainable": "head"}),
}


def main() -> None:
    """Train every way in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--pairs-per-step", type=int, default=32)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--learning-rate", type=float, help="in place of each way's own")
    parser.add_argument("--train", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train is not None:
        print(json.dumps(train(options)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    with tempfile.TemporaryDirectory(prefix="rm_ray-adapters-") as name:
        make_base(Path(name))
        for seed in range(options.runs):
            for way in options.ways:
                found[way].append(apart(way, seed, name))
                print(f"{way}, seed {seed}: {found[way][-1]}", file=sys.stderr, flush=True)
    rows = [
        (way, f"{runs[0]['trained']:,.0f}", *(cell(runs, *column) for column in COLUMNS))
        for way, runs in found.items()
    ]
    print_report(
        f"{describe_machine()}; {options.steps} steps of {options.pairs_per_step} pairs, "
        f"{options.runs} seeds, one thread",
        markdown_table(("trained", "parameters", "accuracy", "s/step", "CPU s/step", "GB"), rows),
        figures=found,
    )


COLUMNS = (("accuracy", ".3f"), ("seconds", ".3f"), ("cpu", ".3f"), ("gigabytes", ".3f"))


def cell(runs: list[dict[str, float]], name: str, form: str) -> str:
    """Return a figure over all seeds."""
    return Spread.of(run[name] for run in runs).cell(form)


def apart(way: str, seed: int, base: str) -> dict[str, float]:
    """Train in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:]]
    command += ["--train", way, "--base", base, "--seed", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def make_base(folder: Path) -> None:
    """Save a language model of random weights."""
    size = len(load_tokenizer("builtin"))
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", vocab_size=size, **MODEL)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def train(options: argparse.Namespace) -> dict[str, float]:
    """Train one way, and return its figures."""
    torch.set_num_threads(1)
    way, seed = WAYS[options.train], options.seed
    with tempfile.TemporaryDirectory(prefix="rm_ray-adapters-") as name:
        count = options.steps * options.pairs_per_step
        table, tokenizer = builtin_table(Path(name) / "train", count)
        held_out, _ = builtin_table(Path(name) / "test", 500, "test")
        before = peak_gb()
        config = ResolvedModel(name_or_path=str(options.base), tokenizer="builtin", **way.model)
        quantized = config.quantization != "none"
        model = build_reward_model(config, tokenizer, seed=seed, lean=quantized)
        choose_trained(model, config, way.lora, seed=seed, dtype=torch.float32)
        optimizer = OptimizerConfig(
            learning_rate=options.learning_rate or way.learning_rate, warmup_steps=10
        )
        cpu = torch.device("cpu")
        engine: Any = PlainEngine(model, optimizer, device=cpu, dtype=torch.float32)
        settings = PlanSettings(
            global_batch_size=options.pairs_per_step, tokens_per_micro_batch=8_192, seed=seed
        )
        plan = Plan(lengths=table.lengths, settings=settings)
        rate = learning_rate_schedule(optimizer, plan.steps.total)
        seconds, computed = [], []
        for step in range(plan.steps.total):
            batches = ready_step(table, plan, step, tokenizer)
            started, started_cpu = time.perf_counter(), time.process_time()
            train_step(
                engine,
                BradleyTerry(),
                batches,
                num_groups=len(plan.groups_of_step(step)),
                learning_rate=rate(step),
            )
            seconds.append(time.perf_counter() - started)
            computed.append(time.process_time() - started_cpu)
        return {
            "accuracy": accuracy(engine, held_out, tokenizer),
            "seconds": statistics.median(seconds),
            "cpu": statistics.median(computed),
            "gigabytes": peak_gb() - before,
            "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }


@torch.no_grad()
def accuracy(engine: Any, table: Any, tokenizer: Any) -> float:
    """Return the share of pairs whose chosen reward is the higher one."""
    plan = Plan(
        lengths=table.lengths,
        settings=PlanSettings(global_batch_size=64, tokens_per_micro_batch=8_192, shuffle=False),
    )
    correct: list[bool] = []
    for step in range(plan.steps.total):
        for batch in ready_step(table, plan, step, tokenizer):
            chosen, rejected = engine.outputs(batch.groups).reshape(-1, 2).T
            correct += (chosen > rejected).tolist()
    return statistics.mean(correct)


def peak_gb() -> float:
    """Return the most resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
