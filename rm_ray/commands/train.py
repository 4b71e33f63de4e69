"""The command line of a training job: a recipe, settings that win over it, and the summary."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import tyro
import yaml

from rm_ray.commands.publish import publish_end
from rm_ray.config.recipe import parse_options
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError, StoppedError, TrainingError
from rm_ray.logs import log_to_stdout
from rm_ray.runs.startup import Startup, describe_startup
from rm_ray.supervisor.supervisor import supervise

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/train.py"

EXIT_STATUS = {"interrupted": 130, "terminated": 143}
"""As a shell reports the signals that were obeyed."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """Train a reward model from preference pairs.

    Every setting has a default, may be set by the recipe, and by an option here, which wins:
    ``python jobs/train.py --recipe jobs/recipes/debug.yaml --optimizer.learning_rate 1e-4``.
    Running the same command again resumes the run of that name, or says that it is finished.
    """

    recipe: Path | None = None
    """YAML file with the settings of this run, by section."""

    dry_run: bool = False
    """Check everything, print the resolved settings, data counts and steps, and stop."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )


def parse_command(arguments: Sequence[str]) -> TrainCommand:
    """Read the command line over its recipe over the defaults; exit with 2 where it is wrong.

    Raises:
        InputError: the recipe is missing, or a setting in it is unknown or wrong.
    """
    return parse_options(TrainCommand, PROGRAM, arguments)


def main(arguments: Sequence[str]) -> int:
    """Train, or say what a run would do; return the exit status."""
    log_to_stdout()
    startup = Startup(began=psutil.Process().create_time())
    try:
        command = parse_command(arguments)
        if command.dry_run:
            from rm_ray.driver.drive import dry_run  # imports Ray, which --help does without

            logger.info("%s", yaml.safe_dump(dry_run(command.config), sort_keys=False).rstrip())
            return 0
        try:
            result = supervise(command.config, startup)
        except TrainingError as error:
            logger.error("error: %s", error)
            return 1
        except StoppedError as stopped:
            logger.info("%s; the same command goes on from there", stopped)
            return EXIT_STATUS[stopped.reason]
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.info("interrupted before anything began")
        return EXIT_STATUS["interrupted"]
    logger.info("%s", run_summary(result))
    return publish_end(command.config)


def log_to_mlflow(arguments: Sequence[str]) -> int:
    """Bring a run's journal to MLflow; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python jobs/log_to_mlflow.py",
        description="Log the metrics of a run to MLflow, where they did not get there by "
        "themselves. What MLflow has already is not sent again, so it may be run at any time.",
    )
    parser.add_argument("run", help="the run's folder or URI: run.storage_path/run.name")
    parser.add_argument("--tracking-uri", help="an MLflow server or database; the run's own")
    options = parser.parse_args(arguments)
    log_to_stdout()
    from rm_ray.tracking.backfill import replay

    try:
        replay(options.run, options.tracking_uri)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except TrainingError as error:
        logger.error("error: %s", error)
        return 1
    return 0


def run_summary(result: dict[str, Any]) -> str:
    """Return the closing page of a run: metrics, speed, where everything is."""
    metrics: dict[str, float] = result["metrics"]
    names = ("accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin", "ties")
    lines = ["", f"run '{result['name']}': {result['steps']:,} steps, {result['episodes']:,} pairs"]
    lines.append(f"  {'':18}{'last batch':>12}{'held out':>12}")
    for name in names:
        cells = [metrics.get(f"{part}/rm/{name}") for part in ("train", "eval")]
        shown = "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells)
        lines.append(f"  {name:18}{shown}")
    lines.append(
        f"  {result['pairs_per_second']:.1f} pairs/s, {result['tokens_per_second']:,.0f} tokens/s "
        f"on {result['workers']} worker{'s' * (result['workers'] != 1)}; "
        f"{result['seconds']:.0f} s from the first step to the last evaluation"
    )
    lines.append(
        f"  {result['layout']}: {result['computed_over_distinct_tokens']:.2f} tokens computed for "
        f"each distinct one; {result['matrix_peak_ratio']:.2f} of the measured matrix peak"
    )
    if result["startup"]:  # an attempt that found only the export undone took no step
        lines.append(f"  {describe_startup(result['startup'])}")
    time, attempts = result["time"], result["attempts"]
    lines.append(
        f"  goodput {time['goodput']:.2f}: {time['steps']:.0f} s of {time['total']:.0f} s trained; "
        f"{len(attempts)} attempt{'s' * (len(attempts) != 1)}, "
        f"{time['work lost and redone']:.0f} s of work done again"
    )
    refused = sum(row["rows"] for row in result["refused"])
    lines.append(f"  pairs: {result['train_pairs']:,} to train on, {result['eval_pairs']:,} held "
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
