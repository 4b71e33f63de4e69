"""Pairs per second of a 1-worker Ray run against the same step loop called without Ray.

Both train the debug recipe's model on its pairs, in turn, each in a process of its own, which keeps
the memory that it frees; the speed is the steady state, the first step left out.

    python tests/benchmarks/ray_overhead.py [--runs 5] [--steps 200] [--threads 1]

Leave a core to Ray's own processes: with as many threads as cores, both compete for the last one.
Where the worker then has cores of its own (``rm_ray/cluster/cores.py``), compare it also with the
loop that is kept to as many cores: without Ray, it has them for itself as well.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, markdown_table, print_report

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rm_ray.allocator import keep_freed_memory  # noqa: E402

RECIPE = ROOT / "jobs" / "recipes" / "debug.yaml"


def main() -> None:
    """Run both in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        if options.cores:
            os.sched_setaffinity(0, options.cores)
        print(json.dumps(train_bare(options.bare, options.steps, options.threads)))
        return
    keep_freed_memory()
    beside: dict[str, list[int]] = {"step loop without Ray": []}
    if hasattr(os, "sched_getaffinity"):
        own = sorted(os.sched_getaffinity(0))[-options.threads :]
        beside["the same on as many cores as threads"] = own
    with_ray, waits = [], []
    without: dict[str, list[float]] = {title: [] for title in beside}
    with tempfile.TemporaryDirectory(prefix="rm_ray-overhead-") as name:
        for run in range(options.runs):
            result = train_with_ray(Path(name), f"run-{run}", options.steps, options.threads)
            with_ray.append(result["pairs_per_second"])
            waits.append(wait_share(Path(result["folder"])))
            for title, cores in beside.items():
                command = [sys.executable, __file__, "--bare", f"{name}/bare-{run}-{len(cores)}"]
                command += ["--steps", str(options.steps), "--threads", str(options.threads)]
                command += ["--cores", *map(str, cores)] if cores else []
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                without[title].append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{describe_machine()}; {options.runs} runs of {options.steps} steps each, in turn; "
        f"{options.threads} threads of arithmetic; medians (least to most)\n"
    )
    rows = [["one Ray worker", Spread.of(with_ray).cell(".0f"), "-"]]
    for title, speeds in without.items():
        ratios = Spread.of(a / b for a, b in zip(with_ray, speeds, strict=True))
        rows.append([title, Spread.of(speeds).cell(".0f"), ratios.cell(".3f")])
    print_report(
        markdown_table(["", "pairs/s", "Ray over it, by turns"], rows),
        f"share of a step spent waiting for data: {statistics.median(waits):.4f}",
        figures={"with_ray": with_ray, "without": without, "wait_shares": waits},
    )


def train_with_ray(
    folder: Path, name: str, steps: int, threads: int, *settings: str, **environment: str
) -> dict[str, Any]:
    """Train as a user would, with more settings if given; return the run's ``result.json``."""
    from rm_ray.config.recipe import read_recipe

    episodes = steps * read_recipe(RECIPE).batch.global_batch_size
    command = [
        sys.executable, str(ROOT / "jobs" / "train.py"), "--recipe", str(RECIPE),
        "--run.name", name, "--run.storage_path", str(folder),
        "--optimizer.max_episodes", str(episodes), "--evaluation.every_steps", "0",
        "--cluster.cpus_per_worker", str(threads), *settings,
    ]  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    result: dict[str, Any] = json.loads((folder / name / "result.json").read_text())
    return result


def wait_share(run: Path) -> float:
    """Return the share of a run's median step, the first left out, that waited for its data."""
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    shares = [r["metrics"]["perf/data_wait_share"] for r in records if r["kind"] == "train"]
    return float(statistics.median(shares[1:]))


def train_bare(folder: Path, steps: int, threads: int) -> float:
    """Take the same steps in this process, reading the same mapped table; return pairs/s."""
    import torch
    from tables import builtin_table, ready_step

    from rm_ray.batches.plan import Plan, PlanSettings
    from rm_ray.batches.read_ahead import read_ahead
    from rm_ray.config.recipe import read_recipe
    from rm_ray.data.sources.synthetic import SPLITS
    from rm_ray.model.build import build_reward_model
    from rm_ray.objectives.build import build_objective
    from rm_ray.train.engine import Engine
    from rm_ray.train.optimizer import learning_rate_schedule
    from rm_ray.train.step import train_step

    config = read_recipe(RECIPE)
    torch.set_num_threads(threads)
    table, tokenizer = builtin_table(folder, SPLITS["train"])
    batch = config.batch.global_batch_size
    settings = PlanSettings(
        global_batch_size=batch,
        tokens_per_micro_batch=config.batch.tokens_per_micro_batch,
        seed=config.run.seed,
        epochs=config.optimizer.epochs,
        max_episodes=steps * batch,
    )
    plan = Plan(lengths=table.lengths, settings=settings)
    model = build_reward_model(config.model, tokenizer, seed=config.run.seed)
    engine = Engine(model, config.optimizer, config.cluster, dtype=torch.float32, use_gpu=False)
    objective = build_objective(config.objective)
    rate = learning_rate_schedule(config.optimizer, plan.steps.total)
    started = 0.0
    steps = (ready_step(table, plan, step, tokenizer) for step in range(plan.steps.total))
    for step, micro_batches in enumerate(read_ahead(steps)):
        if step == 1:
            started = time.monotonic()
        train_step(
            engine,
            objective,
            micro_batches,
            num_groups=plan.steps.size(step),
            learning_rate=rate(step),
        )
    return (plan.steps.num_episodes - batch) / (time.monotonic() - started)


if __name__ == "__main__":
    main()
