"""The end of a trained run: history, plots, the MLflow run, ``result.json``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rm_ray.data.cache.token_table import open_table
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.fit import TrainingOutcome
from rm_ray.errors import LostError, MlflowAwayError, TrainingError
from rm_ray.evaluation.reward_statistics import keep_statistics
from rm_ray.preflight.resolved_run import ResolvedRun, count_named
from rm_ray.runs.attempts import Attempt, account, describe_ending
from rm_ray.runs.history import History
from rm_ray.runs.layout import EXPORT, HISTORY, PLOTS, RESULT, RUN
from rm_ray.runs.row_losses import RowLosses
from rm_ray.tracking.mlflow_run import MlflowRun
from rm_ray.tracking.plots import plot_run
from rm_ray.tracking.sender import MetricSender

logger = logging.getLogger(__name__)


def finish(
    resolved: ResolvedRun, trained: TrainingOutcome, attempt_handle: AttemptHandle
) -> dict[str, Any]:
    """Write history, plots, statistics and ``result.json``, and complete the MLflow run.

    Raises:
        TrainingError: a loss or gradient was not finite; names the pairs or groups.
        LostError: the same, but the settings allow skipping the step.
    """
    outcome = trained.outcome
    if "not_finite" in outcome:
        _refuse_not_finite(resolved, trained, attempt_handle)
    timeline = _account(resolved, outcome, attempt_handle)
    history = History.from_json_lines(outcome.pop("history").splitlines())
    losses = outcome.pop("pair_losses", None)
    documents = {"config.yaml": resolved.config.to_json(), "attempts.json": timeline}
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        figures = plot_run(history.records, resolved.config.run.name, Path(folder))
        resolved.run_folder.upload(Path(folder), PLOTS)
        for record in history.records:  # the sender drops records that MLflow already has
            trained.sender.send(record)
        trained.sender.send_table("refused_rows.json", resolved.row_counts)
        run_id, unsent = _close(
            resolved, trained.sender, lambda mlflow_run: mlflow_run.finish(documents, figures)
        )
    resolved.run_folder.write_text(HISTORY, history.to_json_lines())
    if resolved.config.lora.writes_merged:
        export = resolved.run_folder.folder(EXPORT)
        keep_statistics(resolved.run_folder, outcome["steps"], export)
    _write_losses(resolved, losses)
    result = _result(resolved, outcome, timeline, mlflow_run_id=run_id, mlflow_unsent=unsent)
    resolved.run_folder.write_json(RESULT, result)
    return result


def _write_losses(resolved: ResolvedRun, losses: np.ndarray | None) -> None:
    """Write the pairs' losses ``[E, N]``, if the run kept them, with the place of each."""
    if losses is None:
        return
    table = open_table(resolved.train.parts)
    RowLosses(
        origins=table.origins,
        fragment=np.asarray(table.fragment),
        row=np.asarray(table.row),
        floor=table.columns.label_entropy,
        losses=losses,
        has_margins=bool(np.any(table.columns.margin)),
    ).write(resolved.run_folder)


def _refuse_not_finite(
    resolved: ResolvedRun, trained: TrainingOutcome, attempt_handle: AttemptHandle
) -> NoReturn:
    """Flush MLflow, then raise the error for a step with a non-finite loss or gradient."""
    found = trained.outcome["not_finite"]
    cause = _describe_not_finite(resolved, found)
    if len(attempt_handle.skipped) < resolved.config.optimizer.max_skipped_steps:
        trained.sender.close()
        raise LostError(f"{cause}; the step will be skipped", skips=found["step"])
    _close(resolved, trained.sender, lambda mlflow_run: mlflow_run.end("FAILED"))
    raise TrainingError(f"{cause}. {_REMEDY}")


def _account(
    resolved: ResolvedRun, outcome: dict[str, Any], attempt_handle: AttemptHandle
) -> dict[str, Any]:
    """Return all attempts and their time accounting; pops this attempt's share from the outcome."""
    last = Attempt(
        number=attempt_handle.number,
        began=attempt_handle.startup.began,
        updated=time.time(),
        ending="finished",
        num_workers=resolved.config.cluster.num_workers,
        step=outcome["steps"],
        **outcome.pop("attempt"),
    )
    attempts = [*attempt_handle.earlier, last]
    return {
        "attempts": [describe_ending(attempt) for attempt in attempts],
        "time": account(attempts, outcome.pop("spent")),
    }


def _result(
    resolved: ResolvedRun,
    outcome: dict[str, Any],
    timeline: dict[str, Any],
    *,
    mlflow_run_id: str | None,
    mlflow_unsent: int,
) -> dict[str, Any]:
    """Return ``result.json``."""
    return {
        "name": resolved.config.run.name,
        **outcome,
        "train_pairs": resolved.train.num_groups,
        "eval_pairs": resolved.held_out.num_groups if resolved.held_out else 0,
        **count_named(resolved),
        "unit": resolved.train.unit,
        "refused": resolved.refused,
        "workers": resolved.config.cluster.num_workers,
        "mlflow_run_id": mlflow_run_id,
        "mlflow_unsent": mlflow_unsent,
        "mlflow_tracking_uri": resolved.mlflow.tracking_uri,
        "mlflow_view": resolved.mlflow.view_command,
        **timeline,
        "plots": resolved.run_folder.join(PLOTS),
        "folder": resolved.run_folder.path,
    }


def _close(
    resolved: ResolvedRun, sender: MetricSender, last: Callable[[MlflowRun], None]
) -> tuple[str | None, int]:
    """Flush the sender and run ``last``; return the MLflow run's id and the number of unsent items.

    The id is None if MLflow was never reached.
    """
    unsent, opened = sender.close(), sender.mlflow_run
    try:
        if opened is None or unsent:
            logger.warning(
                "MLflow at %s did not accept %d items in time; history.jsonl has every metric",
                resolved.mlflow.tracking_uri,
                unsent,
            )
        else:
            last(opened)
    except MlflowAwayError as error:
        logger.warning("MLflow did not accept the run's files: %s", error)
        unsent += 1
    if opened is None:
        return None, unsent
    record = resolved.run_folder.read_json(RUN)
    resolved.run_folder.write_json(RUN, {**record, "mlflow_run_id": opened.run_id})
    return opened.run_id, unsent


def _describe_not_finite(resolved: ResolvedRun, found: dict[str, Any]) -> str:
    table = open_table(resolved.train.parts)
    ids = [table.group_id(group) for group in found["groups"]]
    shown = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
    return (
        f"the loss or gradient of step {found['step'] + 1} is not a finite number; "
        f"{resolved.train.unit} at fault: {shown}"
    )


_REMEDY = (
    "Inspect them, lower optimizer.learning_rate, or skip the step with "
    "optimizer.max_skipped_steps; earlier checkpoints are kept"
)
