"""The command that trains a reward model, and its summary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import tyro
import yaml

from rm_ray.commands.exits import RERUN, ExitStatus, run_command
from rm_ray.commands.publish import publish_end
from rm_ray.config.recipe import parse_options
from rm_ray.config.train_config import TrainConfig
from rm_ray.runs.startup import Startup, describe_startup
from rm_ray.supervisor.supervisor import supervise

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/train.py"


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a reward model from preference pairs.

    Every setting has a default. A recipe overrides the defaults, and the options override both:
    ``python jobs/train.py --recipe jobs/recipes/debug.yaml --optimizer.learning_rate 1e-4``.
    Rerunning the same command resumes the run of that name, or reports that it is finished.
    """

    recipe: Path | None = None
    """YAML file with the settings of this run, by section."""

    dry_run: bool = False
    """Check everything, print the resolved settings, data counts and steps, then exit."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )


def parse_command(arguments: Sequence[str]) -> TrainCommand:
    """Parse the command line, which overrides the recipe; exit with 2 if an option is wrong.

    Raises:
        InputError: the recipe is missing, or one of its settings is unknown or wrong.
    """
    return parse_options(TrainCommand, PROGRAM, arguments)


def main(arguments: Sequence[str]) -> int:
    """Train, or print what a run would do; return the exit status."""
    startup = Startup(began=psutil.Process().create_time())
    return run_command(
        partial(_train, startup=startup),
        arguments,
        on_interrupt=RERUN,
    )


def _train(arguments: Sequence[str], startup: Startup) -> int:
    command = parse_command(arguments)
    if command.dry_run:
        from rm_ray.driver.drive import dry_run  # keep --help fast: this imports Ray

        logger.info("%s", yaml.safe_dump(dry_run(command.config), sort_keys=False).rstrip())
        return ExitStatus.DONE
    result = supervise(command.config, startup)
    logger.info("%s", run_summary(result))
    return publish_end(command.config)


_SHOWN = (
    "accuracy", "best_of_k", "kendall_tau", "loss", "centering", "chosen_rewards",
    "rejected_rewards", "reward_margin", "ties",
)  # fmt: skip
"""Metrics of a run's summary, where it has them."""


def _describe_sets(result: dict[str, Any]) -> list[str]:
    """Return a line with the figures of each named set."""
    metrics, lines = result["metrics"], []
    for name, count in result.get("eval_pairs_by_set", {}).items():
        figures = ((shown, metrics.get(f"eval/{name}/{shown}")) for shown in _SHOWN_OF_A_SET)
        told = ", ".join(f"{shown} {value:.4f}" for shown, value in figures if value is not None)
        lines.append(f"  {name:18}{told or 'not evaluated'} over {count:,}")
    return lines


_SHOWN_OF_A_SET = ("accuracy", "score", "best_of_k", "kendall_tau", "loss")


def run_summary(result: dict[str, Any]) -> str:
    """Return the final summary of a run: metrics, speed, and where its files are."""
    metrics: dict[str, float] = result["metrics"]
    unit = result.get("unit", "pairs")
    steps, episodes = result["steps"], result["episodes"]
    lines = ["", f"run '{result['name']}': {steps:,} steps, {episodes:,} {unit}"]
    lines.append(f"  {'':18}{'last batch':>12}{'held out':>12}")
    for name in _SHOWN:
        cells = [metrics.get(f"{part}/rm/{name}") for part in ("train", "eval")]
        if cells == [None, None]:
            continue  # scores alone have no accuracy, and pairs no best of K
        shown = "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells)
        lines.append(f"  {name:18}{shown}")
    lines += _describe_sets(result)
    lines.append(
        f"  {result['pairs_per_second']:.1f} {unit}/s, {result['tokens_per_second']:,.0f} tokens/s "
        f"on {result['workers']} worker{'s' * (result['workers'] != 1)}; "
        f"{result['seconds']:.0f} s from the first step to the last evaluation"
    )
    lines.append(
        f"  {result['layout']}: {result['computed_over_distinct_tokens']:.2f} tokens computed per "
        f"distinct token; {result['matrix_peak_ratio']:.2f} of the measured matrix peak"
    )
    if result["startup"]:  # an attempt that only exported took no step
        lines.append(f"  {describe_startup(result['startup'])}")
    time, attempts = result["time"], result["attempts"]
    lines.append(
        f"  goodput {time['goodput']:.2f}: {time['steps']:.0f} s of {time['total']:.0f} s trained; "
        f"{len(attempts)} attempt{'s' * (len(attempts) != 1)}, "
        f"{time['work lost and redone']:.0f} s of work redone"
    )
    refused = sum(row["rows"] for row in result["refused"])
    lines.append(f"  {unit}: {result['train_pairs']:,} to train on, {result['eval_pairs']:,} held "
                 f"out, {refused:,} refused")  # fmt: skip
    places = {
        "model": result["export"],
        "last checkpoint": result["last_checkpoint"],
        "best checkpoint": result["best_checkpoint"],
        "plots": result["plots"],
        "result": f"{result['folder']}/result.json",
        "MLflow run": f"{result['mlflow_run_id']} at {result['mlflow_tracking_uri']}",
        "see it": result["mlflow_view"],
    }
    lines += [f"  {name:18}{place}" for name, place in places.items()]
    return "\n".join(lines)
