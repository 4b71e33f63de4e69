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
from rm_ray.config.recipe import refuse_repeated
from rm_ray.config.scoring import Rows, ScoringModel, ScoringModels, Workers

if TYPE_CHECKING:  # keep --help fast: this imports torch
    from rm_ray.evaluation.scored_groups import ScoredGroups
    from rm_ray.scoring.ensemble import Ensemble
    from rm_ray.scoring.output import ScoredRows

logger = logging.getLogger(__name__)

REPORT, PLOTS = "report.json", "plots"


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Evaluate a reward model, or several that judge together, on preference pairs.

    Prints accuracy with 95% intervals by source and subset, ties, loss, calibration and the
    correlation of reward with length; for lists of responses also the best of K and Kendall's tau.
    Writes report.json, which lists the worst rows, and plots.
    RewardBench and RewardBench 2 files also get the benchmark's own averages:
    ``python jobs/evaluate.py --model DIR_OR_REPO --data held_out.jsonl``.
    Several models, such as the seeds of a sweep, give mean rewards, their spread per response, and
    accuracy by the spread.
    """

    rows: Annotated[Rows, FLAT]

    output: str | None = None
    """Folder or URI for the report, plots and scored pairs; by default a folder in
    ~/rm_ray/evaluations named after the model and the pairs."""

    model: Annotated[ScoringModels, FLAT]
    workers: Annotated[Workers, FLAT] = field(default_factory=Workers)


def main(arguments: Sequence[str]) -> int:
    """Evaluate a model; return the exit status."""
    return run_command(_evaluate, arguments, on_interrupt=RERUN)


def _evaluate(arguments: Sequence[str]) -> int:
    refuse_repeated(EvaluateCommand, arguments)
    command = tyro.cli(
        EvaluateCommand, prog="python jobs/evaluate.py", args=list(arguments), use_underscores=True
    )
    models = command.model.each()
    if len(models) == 1:
        scored = score_rows(models[0], command.rows, command.output, command.workers)
        report_on(scored, models[0].model)
    else:
        ensemble = score_together(models, command)
        report_on(ensemble.join(command.output), " ".join(command.model.model), ensemble)
    return ExitStatus.DONE


def score_together(models: Sequence[ScoringModel], command: EvaluateCommand) -> Ensemble:
    """Score the rows with one model after another, each into a folder of its own."""
    from rm_ray.cluster.ray_cluster import ray_cluster
    from rm_ray.scoring.ensemble import Ensemble, check_ensemble, member_folder

    check_ensemble(command.output, command.rows)
    members = []
    with ray_cluster(command.workers.cluster, imports=("rm_ray.scoring.batch",)):
        for number, model in enumerate(models, start=1):
            logger.info("model %d of %d: %s", number, len(models), model.model)
            output = member_folder(command.output, number)
            members.append(score_rows(model, command.rows, output, command.workers))
    return Ensemble(names=command.model.model, members=tuple(members))


def report_on(scored: ScoredRows, model: str, ensemble: Ensemble | None = None) -> None:
    """Log the evaluation of scored rows, and write the report and plots to their folder.

    Those of an ``ensemble`` also say how accuracy depends on the spread over its models.

    Raises:
        InputError: no row tells which response is better.
    """
    from rm_ray.evaluation.reports.ensemble import ensemble_report, ensemble_table
    from rm_ray.evaluation.reports.table_and_plots import plot, report_table
    from rm_ray.scoring.preferences import evaluation_report, join_raw, read_preferences

    preferences = read_preferences(scored)
    members: tuple[ScoredRows, ...] = (scored,)
    judges = [preferences.groups]
    if ensemble is not None:
        members = ensemble.members
        judges = [read_preferences(rows).groups for _, rows in ensemble.each()]
    raw = join_raw(judges, [member.statistics for member in members])
    report = evaluation_report(preferences, scored, raw)
    if ensemble is not None:
        pairs = {name: groups.pairs for name, groups in zip(ensemble.names, judges, strict=True)}
        report["ensemble"] = ensemble_report(pairs, preferences.groups.pairs)
    scored.folder.write_json(REPORT, report)
    for member, groups in zip(members, judges, strict=True):
        keep_statistics(member, groups)
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        plot(preferences.groups, report, model, Path(folder) / "evaluation.png")
        scored.folder.upload(Path(folder), PLOTS)
    logger.info("\n%s\n", report_table(report))
    if ensemble is not None:
        logger.info("%s\n", ensemble_table(report["ensemble"]))
    for worst in report["worst"][:3]:
        logger.info("among the worst: %s", json.dumps(worst, ensure_ascii=False)[:300])
    logger.info("report  %s", scored.folder.join(REPORT))
    logger.info("plots   %s", scored.folder.join(PLOTS))


def keep_statistics(scored: ScoredRows, groups: ScoredGroups) -> None:
    """Write the statistics of a model's raw rewards to its folder, for ``--rewards standardized``.

    There are none of standardized rewards, or if all rewards are the same.
    """
    from rm_ray.evaluation.reward_statistics import STATISTICS, RewardStatistics

    found = RewardStatistics.of(groups.rewards)
    if scored.statistics is None and found is not None:
        scored.folder.write_json(STATISTICS, found.to_json())
        logger.info(
            "rewards of %s responses: mean %+.3f, standard deviation %.3f; %s",
            f"{found.num_responses:,}",
            found.mean,
            found.std,
            scored.folder.join(STATISTICS),
        )
