"""Time, memory and balance of planning an epoch of very many pairs for many ranks.

Lengths are drawn from those of the real pairs. The whole epoch is planned in a process of its own
on one core, several times; then the balance is taken over its first steps: the mean of the ranks'
distinct tokens over the most of any rank, for each micro-batch that the ranks compute at a time.
No plan can do better than the mean over the larger of the mean and the step's largest pair.

    python tests/benchmarks/planning.py [--pairs 10000000] [--ranks 64] [--runs 5]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import ROOT, describe_machine
from pair_set import PairSet, read_pairs
from report import Spread, goal, limit, markdown_table, print_report
from turns import resident_bytes

sys.path[:0] = [str(ROOT)]

from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.data.cache.group_tokens import GroupLengths  # noqa: E402

MOST_SECONDS, MOST_GIGABYTES, LEAST_BALANCE = 60.0, 4.0, 0.97

ATTENTION_WEIGHT = 1 / (6 * 4_096)
"""Work of a query-key product over a token's, about what a Llama of 8 billion parameters has:
4 H of 2 (12 H^2) a layer, H the hidden size of 4,096."""


def main() -> None:
    """Plan, measure the balance, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10_000_000)
    parser.add_argument("--ranks", type=int, default=64, help="of the epoch that is timed")
    parser.add_argument("--balanced-ranks", nargs="+", type=int, default=[8, 16, 32, 64])
    parser.add_argument("--max-lengths", nargs="+", type=int, default=[1_024, 4_096])
    parser.add_argument("--global-batch-size", type=int, default=256)
    parser.add_argument("--tokens-per-micro-batch", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=1_000, help="of which the balance is taken")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm_ray-plan-") as name:
        files = {
            tokens: read_pairs("real", max_length=tokens).save(Path(name, f"{tokens}.npz"))
            for tokens in options.max_lengths
        }
        with one_core_process() as pool:
            first = files[options.max_lengths[0]]
            epochs = [pool.submit(plan_epoch, options, first).result() for _ in range(options.runs)]
            balances = [
                {"max_length": tokens, "ranks": ranks,
                 **pool.submit(measure_balance, options, file, ranks).result()}
                for tokens, file in files.items()
                for ranks in options.balanced_ranks
            ]  # fmt: skip
    seconds = Spread.of(epoch["seconds"] for epoch in epochs)
    memory = Spread.of(epoch["peak_memory"] / 1e9 for epoch in epochs)
    wanted = next(b for b in balances if b["ranks"] == max(options.balanced_ranks))
    print_report(
        f"{describe_machine()}; one core; {options.pairs:,} pairs, {options.global_batch_size} a "
        f"step, at most {options.tokens_per_micro_batch:,} tokens a micro-batch",
        markdown_table(
            ["epoch planned", "seconds", "peak GB"],
            [[f"{options.ranks} ranks, {epochs[0]['steps']:,} steps", seconds.cell(".1f"),
              memory.cell()]],
        ),
        markdown_table(
            ["longest conversation", "ranks", "micro-batches a step", "balance, mean",
             "of which no plan exceeds", "balance over the bound", "tokens of all / most"],
            [
                [f"{b['max_length']:,}", str(b["ranks"]), f"{b['micro_batches']:.2f}",
                 f"{b['balance']:.4f}", f"{b['bound']:.4f}", f"{b['balance'] / b['bound']:.4f}",
                 f"{b['of_time']:.4f}"]
                for b in balances
            ],
        ),
        "\n".join(
            f"- {line}"
            for line in (
                limit("seconds for the epoch", seconds.median, MOST_SECONDS, ".1f"),
                limit("peak GB", memory.median, MOST_GIGABYTES),
                goal(f"balance on {wanted['ranks']} ranks, {wanted['max_length']:,} tokens at "
                     f"most (bound {wanted['bound']:.4f})", wanted["balance"], LEAST_BALANCE,
                     ".4f"),
            )
        ),
        figures={"epochs": epochs, "balances": balances},
    )  # fmt: skip


def one_core_process() -> ProcessPoolExecutor:
    """Return a pool that gives every task a fresh process on the same core."""
    return ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=os.sched_setaffinity,
        initargs=(0, {max(os.sched_getaffinity(0))}),
        max_tasks_per_child=1,
    )


def make_plan(options: argparse.Namespace, file: Path) -> Plan:
    """Return the plan of as many pairs as are asked for, as long as those of a file."""
    known = PairSet.load(file)
    drawn = np.random.default_rng(0).integers(0, len(known.pairs), size=options.pairs)
    lengths = GroupLengths.of_pairs(
        chosen=known.chosen[drawn],
        rejected=known.rejected[drawn],
        prefix=known.lengths.prefix[drawn],
    )
    settings = PlanSettings(
        global_batch_size=options.global_batch_size,
        tokens_per_micro_batch=options.tokens_per_micro_batch,
        attention_weight=ATTENTION_WEIGHT,
    )
    return Plan(lengths=lengths, settings=settings)


def plan_epoch(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Plan every step of an epoch, as a rank does."""
    plan = make_plan(options, file)
    started = time.perf_counter()
    for step in range(plan.steps.per_epoch):
        plan.micro_batches(step, rank=0, world_size=options.ranks)
    return {
        "seconds": time.perf_counter() - started,
        "peak_memory": resident_bytes("VmHWM"),
        "steps": plan.steps.per_epoch,
    }


def measure_balance(options: argparse.Namespace, file: Path, ranks: int) -> dict[str, float]:
    """Return how evenly the first steps are spread."""
    plan = make_plan(options, file)
    balances, bounds, counts = [], [], []
    mean_tokens = most_tokens = 0.0
    for step in range(min(options.steps, plan.steps.per_epoch)):
        pairs = plan.groups_of_step(step)
        tokens = plan.lengths[pairs].distinct
        spread = plan.spread(pairs, ranks)
        loads = np.array([[w * tokens[members].sum() for members, w in rank] for rank in spread])
        balances += (loads.mean(axis=0) / loads.max(axis=0)).tolist()
        mean_tokens += loads.mean(axis=0).sum()
        most_tokens += loads.max(axis=0).sum()
        mean = tokens.sum() / ranks
        bounds.append(mean / max(mean, tokens.max()))
        counts.append(loads.shape[1])
    return {
        "balance": float(np.mean(balances)),
        "bound": float(np.mean(bounds)),
        "of_time": mean_tokens / most_tokens,
        "micro_batches": float(np.mean(counts)),
    }


if __name__ == "__main__":
    main()
