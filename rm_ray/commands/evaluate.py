"""The command that evaluates a reward model on preference pairs."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from rm_ray.commands.exits import RERUN, ExitStatus, run_command
from rm_ray.commands.score import FLAT, score_rows
from rm_ray.config.scoring import Rows, ScoringModel, Workers

if TYPE_CHECKING:  # keep --help fast: this imports torch
    from rm_ray.scoring.output import ScoredRows

logger = logging.getLogger(__name__)

REPORT, PLOTS = "report.json", "plots"


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Evaluate a reward model on preference pairs.

    Prints accuracy with 95% intervals by source and subset, ties, loss, calibration and the
    correlation of reward with length. Writes report.json, which lists the worst pairs, and plots.
    RewardBench and RewardBench 2 files also get the benchmark's own averages:
    ``python jobs/evaluate.py --model DIR_OR_REPO --data held_out.jsonl``.
    """

    rows: Annotated[Rows, FLAT]

    output: str | None = None
    """Folder or URI for the report, plots and scored pairs; by default a folder in
    ~/rm_ray/evaluations named after the model and the pairs."""

    model: Annotated[ScoringModel, FLAT]
    workers: Annotated[Workers, FLAT] = field(default_factory=Workers)


def main(arguments: Sequence[str]) -> int:
    """Evaluate a model; return the exit status."""
    return run_command(_evaluate, arguments, on_interrupt=RERUN)


def _evaluate(arguments: Sequence[str]) -> int:
    command = tyro.cli(
        EvaluateCommand, prog="python jobs/evaluate.py", args=list(arguments), use_underscores=True
    )
    scored = score_rows(command.model, command.rows, command.output, command.workers)
    report_on(scored, command.model.model)
    return ExitStatus.DONE


def report_on(scored: ScoredRows, model: str) -> None:
    """Log the evaluation of scored rows, and write the report and plots to their folder.

    Raises:
        InputError: no row tells which response is better.
    """
    from rm_ray.evaluation.report import plot, report_table
    from rm_ray.scoring.preferences import evaluation_report, read_preferences

    preferences = read_preferences(scored)
    report = evaluation_report(preferences, scored)
    scored.folder.write_json(REPORT, report)
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        plot(preferences.pairs, report, model, Path(folder) / "evaluation.png")
        scored.folder.upload(Path(folder), PLOTS)
    logger.info("\n%s\n", report_table(report))
    for worst in report["worst"][:3]:
        logger.info("among the worst: %s", json.dumps(worst, ensure_ascii=False)[:300])
    logger.info("report  %s", scored.folder.join(REPORT))
    logger.info("plots   %s", scored.folder.join(PLOTS))
