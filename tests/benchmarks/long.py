"""Time and memory of long conversations: attention over one pair, and the plan of many.

Conversations of a pair share half of their length. One packed row of a pair goes forward and
backward through a small model, for each length in a process of its own; the growth of its time per
token stands beside that of its FLOPs (rm_ray.model.flops), and its memory beside the estimate's
(rm_ray.estimate.activations). Then an epoch of pairs with a long tail of lengths is planned in a
process of its own, at several budgets: the balance is the mean work of the ranks over that of the
busiest one, summed over micro-batches. No plan can do better than the mean over the larger of the
mean and the step's largest pair. Seconds are the processor's, which other work does not change.

    python tests/benchmarks/long.py [--lengths 4096 8192 16384 32768] [--pairs 100000] [--runs 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, limit, markdown_table, print_report

sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
from core import add_model_options, describe_model, write_model  # noqa: E402
from pair_set import Vocabulary  # noqa: E402
from planning import ATTENTION_WEIGHT, one_core_process  # noqa: E402
from turns import Figures, Turn, resident_bytes, take_turns  # noqa: E402

from rm_ray.batches.collate import unlabelled  # noqa: E402
from rm_ray.batches.packing import pack_groups  # noqa: E402
from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.data.cache.group_tokens import GroupLengths, GroupTokens  # noqa: E402
from rm_ray.estimate.activations import Arithmetic, ForwardPass, activations_of  # noqa: E402
from rm_ray.estimate.architecture import Architecture  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.model.flops import ModelFlops  # noqa: E402

VOCABULARY = Vocabulary(size=512, pad_token_id=511)

FLOAT32 = Arithmetic(stream=4, product=4)

WARM_UP = 256
"""Tokens of the conversations that warm a process up."""

MOST_SECONDS = 5.0
"""To plan an epoch of 100,000 pairs."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, and the length of both conversations of its pair."""

    model: str
    length: int


def main() -> None:
    """Measure attention and the plan, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--lengths", nargs="+", type=int, default=[4_096, 8_192, 16_384, 32_768])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--longest", type=int, default=32_768, help="of the planned conversations")
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--global-batch-size", type=int, default=256)
    parser.add_argument("--budgets", nargs="+", type=int, default=[16_384, 65_536])
    parser.set_defaults(hidden=256, heads=4, layers=2, intermediate=1_024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm_ray-long-") as folder:
        passes = measure_passes(options, Path(folder))
    with one_core_process() as pool:
        plans = [
            [pool.submit(plan_epoch, options, ranks, budget).result() for _ in range(options.runs)]
            for ranks in options.ranks
            for budget in options.budgets
        ]
    seconds = max(Spread.of(run["seconds"] for run in runs).median for runs in plans)
    print_report(
        f"{describe_machine()}; {describe_model(options)}, float32, {options.threads} threads",
        table_of_passes(passes),
        f"{options.pairs:,} pairs of up to {options.longest:,} tokens a conversation, "
        f"{options.global_batch_size} a step; one core",
        table_of_plans(plans),
        limit("seconds for the epoch", seconds, MOST_SECONDS * options.pairs / 100_000, ".1f"),
        figures={"passes": passes, "plans": plans},
    )


def measure_passes(options: argparse.Namespace, folder: Path) -> list[Figures]:
    """Return the figures of each length, the median of its turns."""
    model = write_model(options, VOCABULARY.size, folder)
    measured = []
    for length in options.lengths:
        setting = Setting(model=model, length=length)
        (turns,) = take_turns([(run_passes, setting)], turns=options.runs, threads=options.threads)
        seconds = Spread.of(turn["seconds"] for turn in turns)
        measured.append({**turns[-1], "seconds": seconds._asdict()})
        print(measured[-1], file=sys.stderr)  # the next length takes four times as long
    return measured


def run_passes(setting: Setting, turn: Turn) -> None:
    """Take turns of one forward and backward pass over a pair."""
    vocabulary: Any = VOCABULARY
    model = build_reward_model(ModelConfig(name_or_path=setting.model), vocabulary, seed=0).train()
    flops, lengths = ModelFlops.of(model.classifier), pair_of(setting.length)
    row = ForwardPass.of(lengths, layout="packed", attention="grouped")
    architecture = Architecture.of(model.classifier)
    expected = activations_of(architecture, row, FLOAT32, layout="packed", attention="grouped")
    before = 0
    for number in count():
        tokens = tokens_of(lengths if number else pair_of(WARM_UP))
        started = time.process_time()
        model(pack_groups(tokens, unlabelled(tokens), kernel="grouped")).sum().backward()
        seconds = time.process_time() - started
        before = before or resident_bytes("VmRSS")
        turn.over(
            length=setting.length,
            distinct=int(lengths.distinct.sum()),
            seconds=seconds,
            flops=float(flops.training(lengths).sum()),
            attention=float(flops.attention(lengths).sum() / flops.forward(lengths).sum()),
            memory=resident_bytes("VmHWM") - before,
            estimate=expected.peak(checkpointing=False),
        )


def pair_of(length: int) -> GroupLengths:
    """Return a pair of two conversations of this length that share half of it."""
    both, shared = np.array([length]), np.array([length // 2])
    return GroupLengths.of_pairs(chosen=both, rejected=both, prefix=shared)


def tokens_of(lengths: GroupLengths) -> GroupTokens:
    """Return random tokens of these lengths."""
    rng, size = np.random.default_rng(0), int(lengths.distinct.sum())
    drawn = rng.integers(0, VOCABULARY.pad_token_id, size, dtype=np.int32)
    return GroupTokens(tokens=drawn, lengths=lengths)


def table_of_passes(passes: list[Figures]) -> str:
    """Return the table of time and memory by length."""
    first = passes[0]

    def per_token(figures: Figures, what: str) -> float:
        value: float = figures["seconds"]["median"] if what == "seconds" else figures[what]
        return value / int(figures["distinct"])

    return markdown_table(
        ["conversation", "distinct tokens", "seconds", "time per token", "its FLOPs per token",
         "attention's share of them", "GFLOP/s", "GB", "estimated"],
        [
            [f"{one['length']:,}", f"{one['distinct']:,}", Spread(**one["seconds"]).cell(),
             f"{per_token(one, 'seconds') / per_token(first, 'seconds'):.2f}",
             f"{per_token(one, 'flops') / per_token(first, 'flops'):.2f}",
             f"{one['attention']:.2f}", f"{one['flops'] / one['seconds']['median'] / 1e9:.0f}",
             f"{one['memory'] / 1e9:.2f}", f"{one['estimate'] / 1e9:.2f}"]
            for one in passes
        ],
    )  # fmt: skip


def long_tailed(num_pairs: int, longest: int) -> GroupLengths:
    """Draw pairs whose longer conversation has a log-normal length, its median a 16th of the
    longest; half of it is shared."""
    rng = np.random.default_rng(0)
    whole = np.clip(rng.lognormal(np.log(longest / 16), 1.1, num_pairs), 4, longest)
    prefix = (whole / 2).astype(np.int64)
    tails = (whole - prefix) * rng.uniform(0.5, 1.0, (2, num_pairs))
    tails[0] = whole - prefix
    chosen, rejected = prefix + np.maximum(1, tails).astype(np.int64)
    return GroupLengths.of_pairs(chosen=chosen, rejected=rejected, prefix=prefix)


def plan_epoch(options: argparse.Namespace, ranks: int, budget: int) -> Figures:
    """Plan an epoch as a rank does, then take the balance of all its steps."""
    settings = PlanSettings(
        global_batch_size=options.global_batch_size,
        tokens_per_micro_batch=budget,
        attention_weight=ATTENTION_WEIGHT,
    )
    lengths = long_tailed(options.pairs, options.longest)
    plan, before = Plan(lengths=lengths, settings=settings), resident_bytes("VmRSS")
    started = time.process_time()
    for step in range(plan.steps.per_epoch):
        plan.micro_batches(step, rank=0, world_size=ranks)
    seconds, peak = time.process_time() - started, resident_bytes("VmHWM")
    mean = most = least = micro_batches = largest = 0.0
    for step in range(plan.steps.per_epoch):
        groups = plan.groups_of_step(step)
        mine = lengths[groups]
        work = mine.distinct + ATTENTION_WEIGHT * mine.attended
        spread = plan.spread(groups, ranks)
        loads = np.array([[w * work[members].sum() for members, w in rank] for rank in spread])
        mean += loads.mean(axis=0).sum()
        most += loads.max(axis=0).sum()
        least += max(work.sum() / ranks, work.max())
        micro_batches += loads.shape[1]
        rows = (mine.distinct[members].sum() for rank in spread for members, _ in rank)
        largest = max(largest, *rows)
    return {
        "ranks": ranks,
        "budget": budget,
        "seconds": seconds,
        "megabytes": (peak - before) / 1e6,
        "balance": mean / most,
        "bound": mean / least,
        "micro_batches": micro_batches / plan.steps.per_epoch,
        "largest": int(largest),
    }


def table_of_plans(plans: list[list[Figures]]) -> str:
    """Return the table of planning by ranks and budget."""
    return markdown_table(
        ["ranks", "budget", "seconds", "MB", "micro-batches a step", "largest row", "balance",
         "of which no plan exceeds"],
        [
            [str(runs[0]["ranks"]), f"{runs[0]['budget']:,}",
             Spread.of(run["seconds"] for run in runs).cell(),
             Spread.of(run["megabytes"] for run in runs).cell(".0f"),
             f"{runs[0]['micro_batches']:.2f}", f"{runs[0]['largest']:,}",
             f"{runs[0]['balance']:.3f}", f"{runs[0]['bound']:.3f}"]
            for runs in plans
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
