"""The command that trains a recipe with several settings and seeds, and ranks them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rm_ray.commands.exits import RERUN, STOPS, ExitStatus, run_command
from rm_ray.config.recipe import parse_options
from rm_ray.config.sweep import read_sweep
from rm_ray.config.train_config import TrainConfig

if TYPE_CHECKING:  # keep --help fast: this imports Ray and matplotlib
    from rm_ray.sweep.sweep import SweepResult

logger = logging.getLogger(__name__)

PROGRAM = "python jobs/sweep.py"


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """Train a recipe with several settings and seeds, and rank them by a held-out metric.

    Every trial is a run of ``jobs/train.py`` in the sweep's folder, which is named by
    run.storage_path and run.name. At the end the folder has a table with mean and spread over
    seeds, plots, and the winner's recipe:
    ``python jobs/sweep.py --recipe jobs/recipes/debug.yaml --sweep jobs/sweeps/debug.yaml``.
    Rerunning the same command resumes the sweep: trials that are over are not repeated.
    """

    recipe: Path | None = None
    """YAML file with the settings that all trials share, by section."""

    sweep: Path = tyro.MISSING
    """YAML file with the values of the swept settings, the seeds, and the metric that ranks."""

    config: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=TrainConfig
    )


def main(arguments: Sequence[str]) -> int:
    """Run a sweep; return the exit status."""
    return run_command(_sweep, arguments, on_interrupt=RERUN)


def _sweep(arguments: Sequence[str]) -> int:
    command = parse_options(SweepCommand, PROGRAM, arguments)
    given = read_sweep(command.sweep)
    from rm_ray.sweep.sweep import Sweep

    sweep = Sweep.open(command.config, given, str(command.sweep))
    result = sweep.run()
    if result.stopped is not None:
        logger.info("%s; rerun the same command to resume", result.stopped)
        return STOPS[result.stopped]
    logger.info("%s", summary(result, given.metric))
    return ExitStatus.FAILED if result.failed else ExitStatus.DONE


def summary(result: SweepResult, metric: str) -> str:
    """Return the ranking, where the files are, and which trials failed."""
    from rm_ray.sweep.ranking import ranking_table
    from rm_ray.sweep.sweep import TABLE, WINNER

    lines = ["", ranking_table(result.ranked, metric), ""]
    if result.winner is not None:
        lines.append(f"  winner's recipe   {result.folder.join(WINNER)}")
    else:
        lines.append("  no winner         the best setting has no value, or trials not over")
    lines.append(f"  table and plots   {result.folder.join(TABLE)}, {result.folder.join('plots')}")
    if result.failed:
        one_left = len(result.failed) == 1
        count = "1 trial is" if one_left else f"{len(result.failed)} trials are"
        lines.append(
            f"  {count} not over; the same command tries {'it' if one_left else 'them'} again:"
        )
        lines += [f"    {one.trial.name}: {one.cause or one.state}" for one in result.failed]
    return "\n".join(lines)
