"""Each objective on planted preferences: how much of the utility behind their labels it recovers.

    python tests/benchmarks/planted.py [--seeds 5] [--only lists ties] [--tokens 800000]

A training starts from the built-in model and computes a given number of tokens, in steps of about
as many tokens for all kinds of rows, so that a list costs what it computes. Each seed has weights,
an order and rows of its own; the lists and the pairs exploded from them are the same data.

Rewards are compared with the truth on held-out pairs. A lead is what the better response has more.
Preferences of one prompt leave a common summand of its rewards open, so the main figure is the rank
correlation (Spearman) of the rewards' leads with the true ones, in both directions. Calibration
error is the expected one over ten bins of predicted probability, sigmoid(lead), beside the true
probability of a win: Bradley-Terry's, and 1 for the flipped labels, which are certain but for the
flips.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, goal, markdown_table, print_report

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from plain_engine import PlainEngine  # noqa: E402
from tables import make_table, ready_step  # noqa: E402

from rm_ray.batches.plan import Plan, PlanSettings  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.config.sections.objective import ObjectiveConfig  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.data.cache.token_table import TokenTable  # noqa: E402
from rm_ray.data.sources.planted import (  # noqa: E402
    FLIPPED,
    SPLITS,
    Row,
    generate_rows,
    utility,
    win_probability,
)
from rm_ray.data.tokens.tokenizer import load_tokenizer  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.objectives.build import build_objective  # noqa: E402
from rm_ray.train.optimizer import learning_rate_schedule  # noqa: E402
from rm_ray.train.step import train_step  # noqa: E402

TOKENS_PER_STEP = 1_440
"""About 32 pairs."""

LEARNING_RATE = 5e-4
CLEAN_CORRELATION = 0.9
"""Least rank correlation that clean labels are to reach: below it, the training is too short."""

BRADLEY_TERRY = ObjectiveConfig()

Figures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An objective on a split."""

    split: str
    title: str
    objective: ObjectiveConfig = BRADLEY_TERRY
    is_clean: bool = False
    """Whether flipped labels are put right first."""

    @property
    def name(self) -> str:
        """What ``--only`` calls it."""
        return f"{self.split}/{self.title}"


CLEAN = Trial(split="flipped", title="none flipped", is_clean=True)
HARD = Trial(split="flipped", title="as they are")
SMOOTHED = Trial(
    split="flipped",
    title=f"label_smoothing {FLIPPED}",
    objective=ObjectiveConfig(label_smoothing=FLIPPED),
)
RANKED = Trial(
    split="lists", title="plackett_luce", objective=ObjectiveConfig(loss="plackett_luce")
)
COMPARED = Trial(split="lists", title="bradley_terry")
EXPLODED = Trial(split="exploded", title="bradley_terry")

TRIALS = (
    CLEAN,
    HARD,
    SMOOTHED,
    Trial(split="flipped", title=f"noise {FLIPPED}", objective=ObjectiveConfig(noise=FLIPPED)),
    Trial(split="pairs", title="bradley_terry"),
    Trial(split="soft", title="bradley_terry"),
    Trial(split="ties", title="half"),
    Trial(split="ties", title="davidson", objective=ObjectiveConfig(ties="davidson")),
    Trial(split="ties", title="rao_kupper", objective=ObjectiveConfig(ties="rao_kupper")),
    Trial(split="ties", title="drop", objective=ObjectiveConfig(ties="drop")),
    RANKED,
    COMPARED,
    EXPLODED,
    Trial(split="scores", title="regression", objective=ObjectiveConfig(loss="regression")),
    Trial(split="strengths", title="margin ignore", objective=ObjectiveConfig(margin="ignore")),
    Trial(split="strengths", title="margin add", objective=ObjectiveConfig(margin="add")),
    Trial(split="strengths", title="margin scale", objective=ObjectiveConfig(margin="scale")),
)

COMPARISONS = (
    ("label smoothing beside none, 20% flipped", SMOOTHED, HARD),
    ("Plackett-Luce on lists beside the same lists exploded", RANKED, EXPLODED),
    ("Bradley-Terry on lists beside the same lists exploded", COMPARED, EXPLODED),
)
"""What should recover more of the utility than what."""


def run_trial(trial: Trial, seed: int, tokens: int) -> Figures:
    """Train once, on one thread, and compare the rewards with the truth."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rm_ray-planted-") as folder:
        table = tabulate(rows_of(trial, seed), Path(folder))
        engine, figures = train(table, trial.objective, seed, tokens)
    with tempfile.TemporaryDirectory(prefix="rm_ray-planted-") as folder:
        pairs = list(generate_rows("truth"))
        rewards = score(engine, tabulate(pairs, Path(folder)))
    return {**figures, **compare(rewards, pairs, certain=trial.split == "flipped")}


def rows_of(trial: Trial, seed: int) -> list[Row]:
    """Return the training rows of a seed: as many as the split has, after those of other seeds."""
    size = SPLITS[trial.split]
    rows = list(generate_rows(trial.split, size, first=seed * size))
    return [put_right(row) for row in rows] if trial.is_clean else rows


def put_right(row: Row) -> Row:
    """Return a pair whose chosen response is the one that is worth more."""
    chosen, rejected = sorted(
        (row["chosen"], row["rejected"]), key=lambda text: -utility(row["prompt"], text)
    )
    return {**row, "chosen": chosen, "rejected": rejected}


@functools.cache
def tokenizer() -> Any:
    """Return the built-in tokenizer."""
    return load_tokenizer("builtin")


def tabulate(rows: Sequence[Row], folder: Path) -> TokenTable:
    """Tokenise rows, of which none may be refused."""
    table = make_table(folder, rows, tokenizer())
    if len(table) != len(rows):
        raise RuntimeError(f"{len(rows) - len(table)} of {len(rows)} planted rows were refused")
    return table


def train(
    table: TokenTable, objective: ObjectiveConfig, seed: int, tokens: int
) -> tuple[PlainEngine, Figures]:
    """Train for so many computed tokens; return the engine and what it took."""
    per_group = float(table.lengths.distinct.mean())
    size = round(TOKENS_PER_STEP / per_group)
    num_steps = max(1, round(tokens / per_group / size))
    plan = plan_of(table, size, seed=seed, epochs=math.ceil(num_steps * size / len(table)) + 1)
    optimizer = OptimizerConfig(
        learning_rate=LEARNING_RATE, schedule="cosine", warmup_steps=num_steps // 20
    )
    rate = learning_rate_schedule(optimizer, num_steps)
    model = build_reward_model(ModelConfig(), tokenizer(), seed=seed)
    engine: Any = PlainEngine(model, optimizer, device=torch.device("cpu"), dtype=torch.float32)
    loss = build_objective(objective)
    computed, started = 0, time.process_time()
    for step in range(num_steps):
        measured = train_step(
            engine,
            loss,
            ready_step(table, plan, step, tokenizer()),
            num_groups=plan.steps.size(step),
            learning_rate=rate(step),
        )
        computed += measured.groups.tokens.computed
    return engine, {
        "tokens": computed,
        "steps": num_steps,
        "groups_per_step": size,
        "epochs": plan.steps.episodes_before(num_steps) / len(table),
        "cpu_seconds": time.process_time() - started,
    }


def plan_of(table: TokenTable, size: int, **settings: Any) -> Plan:
    """Return a plan of steps of so many groups, each in one forward pass."""
    limits = PlanSettings(global_batch_size=size, tokens_per_micro_batch=1 << 20, **settings)
    return Plan(lengths=table.lengths, settings=limits)


def score(engine: PlainEngine, table: TokenTable) -> np.ndarray:
    """Return the rewards of pairs, chosen and rejected: ``[P, 2]``."""
    plan = plan_of(table, 100, shuffle=False)
    rewards = np.empty((len(table), 2))
    with torch.no_grad():
        for step in range(plan.steps.total):
            for ready in ready_step(table, plan, step, tokenizer()):
                num_responses = len(ready.groups.labels.response_group)
                outputs = engine.outputs(ready.groups)[:num_responses]
                rewards[ready.loaded.plan.groups] = outputs.view(-1, 2).numpy()
    return rewards


def compare(rewards: np.ndarray, pairs: Sequence[Row], *, certain: bool) -> Figures:
    """Return how the rewards ``[P, 2]`` of pairs agree with their utilities."""
    worth = np.array(
        [[utility(row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in pairs]
    )
    leads, true_leads = rewards[:, 0] - rewards[:, 1], worth[:, 0] - worth[:, 1]
    probability = np.ones(len(pairs)) if certain else np.array([*map(win_probability, true_leads)])
    return {
        "correlation": spearman(
            np.concatenate([leads, -leads]), np.concatenate([true_leads, -true_leads])
        ),
        "correlation_of_rewards": spearman(rewards.reshape(-1), worth.reshape(-1)),
        "accuracy": float(((leads > 0) + (leads == 0) / 2).mean()),
        "calibration_error": calibration_error(
            1 / (1 + np.exp(-np.concatenate([leads, -leads]))),
            np.concatenate([probability, 1 - probability]),
        ),
    }


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Return the rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(mean_ranks(left), mean_ranks(right))[0, 1])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value, from 1; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def calibration_error(predicted: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Return the mean distance of predicted and true probability over bins of equal size."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), bins)
    off = [len(part) * abs(predicted[part].mean() - probability[part].mean()) for part in parts]
    return float(sum(off) / len(predicted))


def main() -> None:
    """Run the trials with all seeds and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [trial.name for trial in TRIALS]
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each, from seed 0")
    parser.add_argument("--only", nargs="+", default=[""], help=f"of {', '.join(names)}")
    parser.add_argument("--tokens", type=int, default=800_000, help="that a training computes")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of one thread each")
    options = parser.parse_args()
    trials = [trial for trial in TRIALS if trial.name.startswith(tuple(options.only))]
    if not trials:
        parser.error(f"--only {' '.join(options.only)}: known are {', '.join(names)}")
    results = run_all(trials, options)
    goals = compare_trials(results)
    header = [
        "split", "objective", "rank correlation of leads", "of rewards", "accuracy",
        "calibration error", "tokens", "steps x groups", "epochs", "CPU s",
    ]  # fmt: skip
    print_report(
        f"{describe_machine()}; the built-in model, {options.seeds} seeds, medians (least to most)",
        markdown_table(header, [row(trial, runs) for trial, runs in results.items()]),
        "\n".join(f"- {line}" for line in goals),
        figures=[
            {"split": trial.split, "objective": trial.title, "runs": runs}
            for trial, runs in results.items()
        ],
    )


def run_all(trials: Sequence[Trial], options: argparse.Namespace) -> dict[Trial, list[Figures]]:
    """Return the figures of each trial, one by seed."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        runs = {
            trial: [
                pool.submit(run_trial, trial, seed, options.tokens) for seed in range(options.seeds)
            ]
            for trial in trials
        }
        return {trial: [run.result() for run in by_seed] for trial, by_seed in runs.items()}


def column(runs: Sequence[Figures], name: str) -> Spread:
    """Return a figure over the seeds."""
    return Spread.of(run[name] for run in runs)


def row(trial: Trial, runs: Sequence[Figures]) -> list[str]:
    """Return the cells of one trial."""
    measured = ("correlation", "correlation_of_rewards", "accuracy", "calibration_error")
    first = runs[0]
    return [
        trial.split,
        trial.title,
        *(column(runs, name).cell(".3f") for name in measured),
        f"{column(runs, 'tokens').median:,.0f}",
        f"{first['steps']} x {first['groups_per_step']}",
        f"{first['epochs']:.1f}",
        f"{column(runs, 'cpu_seconds').median:.0f}",
    ]


def compare_trials(results: dict[Trial, list[Figures]]) -> list[str]:
    """Return whether training is long enough, and whether what should recover more does.

    Differences are those of the same seed.
    """
    lines = []
    if CLEAN in results:
        reached = column(results[CLEAN], "correlation").median
        lines.append(goal("rank correlation with clean labels", reached, CLEAN_CORRELATION))
    for title, better, other in COMPARISONS:
        if better not in results or other not in results:
            continue
        both = zip(results[better], results[other], strict=True)
        gain = Spread.of(a["correlation"] - b["correlation"] for a, b in both)
        lines.append(
            goal(f"{title}: gain in rank correlation, {gain.cell('+.3f')}", gain.median, 0, "+.3f")
        )
    return lines


if __name__ == "__main__":
    main()
