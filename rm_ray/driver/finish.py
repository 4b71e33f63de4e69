"""What a run leaves once it is trained: history, plots, MLflow's run, ``result.json``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rm_ray.data.cache.token_table import open_table
from rm_ray.driver.attempt_handle import AttemptHandle
from rm_ray.driver.fit import TrainingOutcome
from rm_ray.errors import LostError, TrainingError
from rm_ray.preflight.resolve import ResolvedRun
from rm_ray.runs.attempts import Attempt, account, describe_ending
from rm_ray.runs.history import History
from rm_ray.runs.layout import HISTORY, PLOTS, RESULT, RUN
from rm_ray.tracking.mlflow_run import MlflowRun
from rm_ray.tracking.plots import plot_run
from rm_ray.tracking.sender import MetricSender
from rm_ray.tracking.target import MlflowAwayError

logger = logging.getLogger(__name__)


def finish(
    resolved: ResolvedRun, fitted: TrainingOutcome, attempt_handle: AttemptHandle
) -> dict[str, Any]:
    """Write history, plots and ``result.json``, and complete the MLflow run.

    Raises:
        TrainingError: the loss was not finite; names the pairs.
        LostError: it was, and the step may be left out.
    """
    config, run_folder = resolved.config, resolved.run_folder
    outcome = fitted.outcome
    if "not_finite" in outcome:
        found = outcome["not_finite"]
        cause = _describe_not_finite(resolved, found)
        if len(attempt_handle.skipped) < config.optimizer.max_skipped_steps:
            fitted.sender.close()
            raise LostError(f"{cause}; the step is left out", skips=found["step"])
        _close(resolved, fitted.sender, lambda mlflow_run: mlflow_run.end("FAILED"))
        raise TrainingError(f"{cause}. {_REMEDY}")
    this = Attempt(
        number=attempt_handle.number,
        began=attempt_handle.startup.began,
        updated=time.time(),
        ending="finished",
        num_workers=int(config.cluster.num_workers or 1),
        step=outcome["steps"],
        **outcome.pop("attempt"),
    )
    attempts = [*attempt_handle.earlier, this]
    timeline = {
        "attempts": [describe_ending(attempt) for attempt in attempts],
        "time": account(attempts, outcome.pop("spent")),
    }
    history = History.from_json_lines(outcome.pop("history").splitlines())
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        figures = plot_run(history.records, config.run.name, Path(folder))
        run_folder.upload(Path(folder), PLOTS)
        for record in history.records:  # those that MLflow has are not sent again
            fitted.sender.send(record)
        fitted.sender.send_table("refused_rows.json", resolved.row_counts)
        documents = {"config.yaml": config.to_json(), "attempts.json": timeline}
        run_id, unsent = _close(
            resolved, fitted.sender, lambda mlflow_run: mlflow_run.finish(documents, figures)
        )
    run_folder.write_text(HISTORY, history.to_json_lines())
    result = {
        "name": config.run.name,
        **outcome,
        "train_pairs": resolved.train.num_pairs,
        "eval_pairs": resolved.held_out.num_pairs if resolved.held_out else 0,
        "refused": resolved.refused,
        "workers": config.cluster.num_workers,
        "mlflow_run_id": run_id,
        "mlflow_unsent": unsent,
        "mlflow_tracking_uri": resolved.mlflow.tracking_uri,
        "mlflow_view": resolved.mlflow.view_command,
        **timeline,
        "plots": run_folder.join(PLOTS),
        "folder": run_folder.path,
    }
    run_folder.write_json(RESULT, result)
    return result


def _close(
    resolved: ResolvedRun, sender: MetricSender, last: Callable[[MlflowRun], None]
) -> tuple[str | None, int]:
    """Send what is left and do the last thing; return the run's id and how much was not sent.

    The id is None where MLflow was never there.
    """
    unsent, opened = sender.close(), sender.mlflow_run
    try:
        if opened is None or unsent:
            logger.warning(
                "MLflow at %s did not take %d items in time; history.jsonl has every metric",
                resolved.mlflow.tracking_uri,
                unsent,
            )
        else:
            last(opened)
    except MlflowAwayError as error:
        logger.warning("MLflow did not take the run's files: %s", error)
        unsent += 1
    if opened is None:
        return None, unsent
    record = resolved.run_folder.read_json(RUN)
    resolved.run_folder.write_json(RUN, {**record, "mlflow_run_id": opened.run_id})
    return opened.run_id, unsent


def _describe_not_finite(resolved: ResolvedRun, found: dict[str, Any]) -> str:
    table = open_table(resolved.train.parts)
    ids = [table.pair_id(pair) for pair in found["pairs"]]
    shown = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
    return (
        f"the loss or gradient of step {found['step'] + 1} is not a finite number; pairs at fault: "
        f"{shown}"
    )


_REMEDY = (
    "Look at them, lower optimizer.learning_rate, or leave the step out with "
    "optimizer.max_skipped_steps; the checkpoints before it are kept"
)
