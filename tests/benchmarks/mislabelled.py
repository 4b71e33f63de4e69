"""Wrong labels that are planted among right ones: how many of them are among the most suspect.

    python tests/benchmarks/mislabelled.py [--seeds 3] [--visits 18000] [--epochs 1 3 12]

A tenth of the pairs get their labels flipped, and the built-in model trains on all of them, with
the loss of each pair kept as `run.keep_pair_losses` does. A share of the pairs, the most suspect by
some figure, then holds a part of the flipped ones: with labels drawn at random as large a part as
the share. The goal is 70% of them among 15% of the pairs. The file of an audit leaves out those
that the models agree with, also some flipped ones; how many right labels it then names is shown
by trainings in which none is flipped.

`builtin` has five tasks with rules that a model learns at once; `planted` a utility of words, of
which many pairs are close. Pairs and flips are the same for all seeds, which have weights and an
order of their own. A training is as long as those of `planted.py`, which learn the utility,
whatever its number of epochs: more epochs have fewer pairs, and learn more of them by heart.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import ROOT, describe_machine
from report import Spread, goal, markdown_table, print_report

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from plain_engine import PlainEngine  # noqa: E402
from planted import LEARNING_RATE, plan_of, put_right, score, tabulate, tokenizer  # noqa: E402
from tables import ready_step  # noqa: E402

from rm_ray.audit.suspects import find_most_suspect, join_losses, suspicion  # noqa: E402
from rm_ray.checkpoint.pair_losses import PairLosses  # noqa: E402
from rm_ray.config.sections.model import ModelConfig  # noqa: E402
from rm_ray.config.sections.optimizer import OptimizerConfig  # noqa: E402
from rm_ray.data.cache.token_table import TokenTable  # noqa: E402
from rm_ray.data.sources.planted import Row, generate_rows  # noqa: E402
from rm_ray.data.sources.synthetic import generate_pairs  # noqa: E402
from rm_ray.model.build import build_reward_model  # noqa: E402
from rm_ray.objectives.bradley_terry import BradleyTerry  # noqa: E402
from rm_ray.runs.row_losses import RowLosses  # noqa: E402
from rm_ray.train.optimizer import learning_rate_schedule  # noqa: E402
from rm_ray.train.step import accumulate_gradients, check_step  # noqa: E402

FLIPPED, SHARE, FOUND = 0.1, 0.15, 0.7
"""Share of labels that are flipped, share of pairs that are suspected, and the goal."""

BATCH = 32

SETS: dict[str, Callable[[int], list[Row]]] = {
    "builtin": lambda count: list(generate_pairs("train", count)),
    "planted": lambda count: [put_right(row) for row in generate_rows("flipped", count)],
}
"""Pairs with right labels."""


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """Pairs, and which of them have the wrong label."""

    rows: list[Row]
    is_flipped: np.ndarray


def flip(rows: Sequence[Row], share: float) -> Noisy:
    """Return the pairs with the labels of a share of them flipped."""
    is_flipped = np.zeros(len(rows), dtype=bool)
    is_flipped[np.random.default_rng(0).permutation(len(rows))[: round(share * len(rows))]] = True
    sides = ({"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows)
    return Noisy(
        rows=[
            {**row, **other} if wrong else row
            for row, other, wrong in zip(rows, sides, is_flipped, strict=True)
        ],
        is_flipped=is_flipped,
    )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one training knows of the pairs."""

    kept: RowLosses
    """The loss of each in each epoch."""
    margins: np.ndarray
    """``[N]``: those of the final model."""
    is_flipped: np.ndarray


def train_on_noise(rows: Sequence[Row], epochs: int, seed: int, flipped: float = FLIPPED) -> Seen:
    """Flip a share of the labels, train on all pairs on one thread, and keep their losses."""
    torch.set_num_threads(1)
    noisy = flip(rows, flipped)
    with tempfile.TemporaryDirectory(prefix="rm_ray-mislabelled-") as folder:
        table = tabulate(noisy.rows, Path(folder))
        losses, margins = train(table, epochs, seed)
        kept = RowLosses(
            origins=table.origins,
            fragment=np.array(table.fragment),
            row=np.array(table.row),
            floor=table.columns.label_entropy,
            losses=losses,
        )
    return Seen(kept=kept, margins=margins, is_flipped=noisy.is_flipped)


def train(table: TokenTable, epochs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each pair's losses ``[E, N]`` and its final margin ``[N]``."""
    plan = plan_of(table, BATCH, seed=seed, epochs=epochs)
    steps = plan.steps
    optimizer = OptimizerConfig(
        learning_rate=LEARNING_RATE, schedule="cosine", warmup_steps=steps.total // 20
    )
    rate = learning_rate_schedule(optimizer, steps.total)
    model = build_reward_model(ModelConfig(), tokenizer(), seed=seed)
    engine: Any = PlainEngine(model, optimizer, device=torch.device("cpu"), dtype=torch.float32)
    kept = PairLosses.empty(steps.num_epochs, len(table))
    for step in range(steps.total):
        micro_batches = ready_step(table, plan, step, tokenizer())
        gradients = accumulate_gradients(
            engine,
            BradleyTerry(),
            micro_batches,
            num_groups=steps.size(step),
            keeps_losses=True,
        )
        check_step(gradients, *engine.step(rate(step), gradients.sums))
        for ready, losses in zip(micro_batches, gradients.losses, strict=True):
            kept.add(step // steps.per_epoch, ready.loaded.plan.groups, losses.numpy())
    rewards = score(engine, table)
    return kept.values, rewards[:, 0] - rewards[:, 1]


def kept_losses(seen: Seen) -> RowLosses:
    """Return the losses of all epochs, of which an audit takes a mean."""
    return seen.kept


def final_losses(seen: Seen) -> RowLosses:
    """Return the losses of the final model."""
    return replace(seen.kept, losses=np.logaddexp(0, -seen.margins)[None])


def taken(seen: Seen, epochs: int) -> RowLosses:
    """Return the losses that an audit takes."""
    return final_losses(seen) if epochs == 1 else kept_losses(seen)


FIGURES: dict[str, Callable[[Seen], RowLosses]] = {
    "mean loss, late epochs weighing more": kept_losses,
    "loss in the last epoch": lambda seen: replace(seen.kept, losses=seen.kept.losses[-1:]),
    "loss of the final model": final_losses,
}
"""By what pairs are suspected."""


def found(models: Sequence[RowLosses], is_flipped: np.ndarray) -> float:
    """Return the part of the flipped pairs that is among the most suspect."""
    joint = join_losses(models)
    most = math.ceil(SHARE * len(is_flipped))
    worst = joint.row[np.argsort(-suspicion(joint.losses), kind="stable")[:most]]
    return float(is_flipped[worst].sum() / is_flipped.sum())


def suspects(models: Sequence[RowLosses]) -> list[int]:
    """Return the pairs that the file of an audit would name."""
    return [each.row for each in find_most_suspect(join_losses(models), SHARE).findings]


def recall(models: Sequence[RowLosses], is_flipped: np.ndarray) -> float:
    """Return the part of the flipped pairs that the file of an audit would name."""
    return float(is_flipped[suspects(models)].sum() / is_flipped.sum())


def row(labels: str, epochs: int, figure: str, seeds: Sequence[Seen]) -> list[str]:
    """Return the cells of a figure on a set: one seed at a time, and all together."""
    losses, is_flipped = [FIGURES[figure](seen) for seen in seeds], seeds[0].is_flipped
    alone = Spread.of(found([each], is_flipped) for each in losses)
    named = Spread.of(recall([each], is_flipped) for each in losses)
    precision = Spread.of(is_flipped[suspects([each])].mean() for each in losses)
    return [
        labels,
        f"{len(is_flipped):,} x {epochs}",
        figure,
        alone.cell(".3f"),
        f"{found(losses, is_flipped):.3f}",
        named.cell(".3f"),
        precision.cell(".3f"),
    ]


def row_of_right(labels: str, epochs: int, seen: Seen) -> list[str]:
    """Return the cells of a training without flipped labels: what an audit names all the same."""
    named, count = len(suspects([taken(seen, epochs)])), len(seen.is_flipped)
    return [labels, f"{count:,} x {epochs}", f"{named:,} ({named / count:.1%})"]


def main() -> None:
    """Run all trainings and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each, from seed 0")
    parser.add_argument("--visits", type=int, default=18_000, help="pairs x epochs")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 12])
    parser.add_argument("--sets", nargs="+", default=[*SETS], choices=[*SETS])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="of one thread each")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        waiting = {
            (name, epochs): [
                pool.submit(train_on_noise, SETS[name](options.visits // epochs), epochs, seed)
                for seed in range(options.seeds)
            ]
            for name in options.sets
            for epochs in options.epochs
        }
        right = {
            (name, epochs): pool.submit(
                train_on_noise, SETS[name](options.visits // epochs), epochs, 0, 0.0
            )
            for name, epochs in waiting
        }
        trained = {key: [one.result() for one in runs] for key, runs in waiting.items()}
        named = [row_of_right(*key, one.result()) for key, one in right.items()]
    rows = [row(*key, figure, seeds) for key, seeds in trained.items() for figure in FIGURES]
    header = [
        "labels", "pairs x epochs", "suspected by", f"of the flipped in {SHARE:.0%}",
        "all seeds together", "in the file", "of the file",
    ]  # fmt: skip
    print_report(
        f"{describe_machine()}; {options.seeds} seeds, medians (least to most)",
        markdown_table(header, rows),
        markdown_table(["none flipped", "pairs x epochs", "named"], named),
        "\n".join(f"- {line}" for line in goals(trained)),
        figures=[dict(zip(header, cells, strict=True)) for cells in rows] + named,
    )


def goals(trained: dict[tuple[str, int], list[Seen]]) -> list[str]:
    """Return whether each set's worst seed reaches the goal by the losses that an audit takes.

    Those are the mean ones, and after a single epoch those of the final model.
    """
    parts = {"among the most suspect": found, "in the file": recall}
    return [
        goal(
            f"{labels}, {epochs} epochs: flipped labels {part}, worst seed",
            min(of([taken(seen, epochs)], seen.is_flipped) for seen in seeds),
            FOUND,
        )
        for (labels, epochs), seeds in trained.items()
        for part, of in parts.items()
    ]


if __name__ == "__main__":
    main()
