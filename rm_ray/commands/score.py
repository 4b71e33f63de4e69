"""The command lines of scoring and evaluation."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from rm_ray.config.scoring import Rows, ScoringModel, Workers
from rm_ray.config.train_config import ClusterConfig
from rm_ray.data.rows.reading import describe_all
from rm_ray.errors import INTERRUPTED, InputError
from rm_ray.logs import log_to_stdout

if TYPE_CHECKING:  # imports Ray and torch, which --help does without
    from rm_ray.scoring.batch import ScoredRows

logger = logging.getLogger(__name__)

REPORT, PLOTS = "report.json", "plots"

_FLAT = tyro.conf.arg(name="")

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class ScoreCommand:
    """Score rows of any number with a reward model.

    A row is a preference pair (chosen, rejected), a conversation (messages, or prompt and
    response), or a prompt with responses, of which the best one is named. Every row keeps its
    columns and gets its reward. Rows that cannot be scored go to a quarantine file with the reason.
    The same command goes on where it was interrupted:
    ``python jobs/score.py --model DIR_OR_REPO --data rows.jsonl --output DIR``.
    """

    rows: Annotated[Rows, _FLAT]

    output: str
    """Folder or URI for the scored rows, JSON Lines in rows/, and quarantine.jsonl."""

    model: Annotated[ScoringModel, _FLAT]
    workers: Annotated[Workers, _FLAT] = field(default_factory=Workers)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Say how good a reward model is on preference pairs.

    Prints accuracy with 95% intervals by source and subset, ties, loss, calibration and the
    correlation of reward with length; writes report.json, the worst pairs in it, and plots. The
    formats of RewardBench and RewardBench 2 are read, and averaged in their own way:
    ``python jobs/evaluate.py --model DIR_OR_REPO --data held_out.jsonl``.
    """

    rows: Annotated[Rows, _FLAT]

    output: str | None = None
    """Folder or URI for the report, the plots and the scored pairs; none: one for this model and
    these pairs in ~/rm_ray/evaluations."""

    model: Annotated[ScoringModel, _FLAT]
    workers: Annotated[Workers, _FLAT] = field(default_factory=Workers)


def main_score(arguments: Sequence[str]) -> int:
    """Score rows; return the exit status."""
    return _run(ScoreCommand, "python jobs/score.py", arguments, _score)


def main_evaluate(arguments: Sequence[str]) -> int:
    """Evaluate a model; return the exit status."""
    return _run(EvaluateCommand, "python jobs/evaluate.py", arguments, _evaluate)


def _run(
    command: type[C], program: str, arguments: Sequence[str], action: Callable[[C], None]
) -> int:
    log_to_stdout()
    try:
        options = tyro.cli(command, prog=program, args=list(arguments), use_underscores=True)
        action(options)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        logger.info("interrupted; the same command goes on")
        return INTERRUPTED
    return 0


def _score_rows(command: ScoreCommand | EvaluateCommand) -> ScoredRows:
    from rm_ray.cluster.ray_cluster import ray_cluster

    workers = command.workers
    cluster = ClusterConfig(
        num_workers=workers.num_workers,
        use_gpu=workers.use_gpu,
        cpus_per_worker=workers.cpus_per_worker,
    )
    with ray_cluster(cluster, imports=("rm_ray.scoring.batch",)) as fitted:
        from rm_ray.scoring.batch import score

        scored = score(command.model, command.rows, command.output, fitted)
    for line in describe_all(scored.readings):
        logger.info("%s", line)
    return scored


def _score(command: ScoreCommand) -> None:
    scored = _score_rows(command)
    logger.info("%s rows scored, in %s/rows", f"{scored.num_scored:,}", scored.folder.path)
    if scored.refused:
        for reason, count in scored.refused.items():
            logger.info("  refused %6d  %s", count, reason)
        logger.info("  refused rows are in %s", scored.folder.join("quarantine.jsonl"))


def _evaluate(command: EvaluateCommand) -> None:
    from rm_ray.evaluation.evaluate_rows import evaluate_rows, judge
    from rm_ray.evaluation.report import plot, report_table

    scored = _score_rows(command)
    preferences = judge(scored)
    report: dict[str, Any] = evaluate_rows(preferences, scored)
    scored.folder.write_json(REPORT, report)
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        plot(preferences.pairs, report, command.model.model, Path(folder) / "evaluation.png")
        scored.folder.upload(Path(folder), PLOTS)
    logger.info("\n%s\n", report_table(report))
    for worst in report["worst"][:3]:
        logger.info("among the worst: %s", json.dumps(worst, ensure_ascii=False)[:300])
    logger.info("report  %s", scored.folder.join(REPORT))
    logger.info("plots   %s", scored.folder.join(PLOTS))
