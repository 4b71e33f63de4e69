"""The command that scores rows with a reward model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from rm_ray.commands.exits import RERUN, ExitStatus, run_command
from rm_ray.config.recipe import refuse_repeated
from rm_ray.config.scoring import Rows, ScoringModel, Workers
from rm_ray.data.rows.column_readings import describe_all

if TYPE_CHECKING:  # keep --help fast: this imports Ray and torch
    from rm_ray.scoring.output import ScoredRows

logger = logging.getLogger(__name__)

FLAT = tyro.conf.arg(name="")
"""Marks a group of options whose names get no prefix."""


@dataclass(frozen=True, kw_only=True)
class ScoreCommand:
    """Score any number of rows with a reward model.

    A row is a preference pair (chosen, rejected), a conversation (messages, or prompt and
    response), or a prompt with responses, the best of which is marked. Rows keep their columns and
    gain their rewards. Rows that cannot be scored go to a quarantine file with the reason. Rerun
    the same command to resume an interrupted one:
    ``python jobs/score.py --model DIR_OR_REPO --data rows.jsonl --output DIR``.
    """

    rows: Annotated[Rows, FLAT]

    output: str
    """Folder or URI for the scored rows (JSON Lines in rows/) and quarantine.jsonl."""

    model: Annotated[ScoringModel, FLAT]
    workers: Annotated[Workers, FLAT] = field(default_factory=Workers)


def main(arguments: Sequence[str]) -> int:
    """Score rows; return the exit status."""
    return run_command(_score, arguments, on_interrupt=RERUN)


def _score(arguments: Sequence[str]) -> int:
    refuse_repeated(ScoreCommand, arguments)
    command = tyro.cli(
        ScoreCommand, prog="python jobs/score.py", args=list(arguments), use_underscores=True
    )
    scored = score_rows(command.model, command.rows, command.output, command.workers)
    logger.info("%s rows scored, in %s/rows", f"{scored.num_scored:,}", scored.folder.path)
    if scored.refused:
        for reason, count in scored.refused.items():
            logger.info("  refused %6d  %s", count, reason)
        logger.info("  refused rows are in %s", scored.folder.join("quarantine.jsonl"))
    return ExitStatus.DONE


def score_rows(model: ScoringModel, rows: Rows, output: str | None, workers: Workers) -> ScoredRows:
    """Score rows on a Ray cluster and log how each source was read."""
    from rm_ray.cluster.ray_cluster import ray_cluster

    with ray_cluster(workers.cluster, imports=("rm_ray.scoring.batch",)) as fitted:
        from rm_ray.scoring.batch import score

        scored = score(model, rows, output, fitted)
    for line in describe_all(scored.readings):
        logger.info("%s", line)
    return scored
