"""What a run leaves once it is trained: history, plots, MLflow's run, ``result.json``."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rm_ray.data.cache.token_table import open_table
from rm_ray.driver.going import Going
from rm_ray.driver.trainer import Fitted
from rm_ray.errors import LostError, TrainingError
from rm_ray.preflight.prepare import Prepared
from rm_ray.runs.attempts import Attempt, account, describe_ending
from rm_ray.runs.history import History
from rm_ray.runs.layout import HISTORY, PLOTS, RESULT, RUN
from rm_ray.tracking.mlflow_run import MlflowRun
from rm_ray.tracking.plots import plot_run
from rm_ray.tracking.shipping import MetricShipper
from rm_ray.tracking.target import MlflowAwayError

logger = logging.getLogger(__name__)


def finish(prepared: Prepared, fitted: Fitted, going: Going) -> dict[str, Any]:
    """Write history, plots and ``result.json``, and complete the MLflow run.

    Raises:
        TrainingError: the loss was not finite; names the pairs.
        LostError: it was, and the step may be left out.
    """
    config, run = prepared.config, prepared.run
    outcome = fitted.outcome
    if "not_finite" in outcome:
        found = outcome["not_finite"]
        cause = _describe_not_finite(prepared, found)
        if len(going.skipped) < config.optimizer.max_skipped_steps:
            fitted.shipper.close()
            raise LostError(f"{cause}; the step is left out", skips=found["step"])
        _close(prepared, fitted.shipper, lambda run: run.end("FAILED"))
        raise TrainingError(f"{cause}. {_REMEDY}")
    this = Attempt(
        number=going.number,
        began=going.startup.began,
        updated=time.time(),
        ending="finished",
        num_workers=int(config.cluster.num_workers or 1),
        step=outcome["steps"],
        **outcome.pop("attempt"),
    )
    attempts = [*going.earlier, this]
    timeline = {
        "attempts": [describe_ending(attempt) for attempt in attempts],
        "time": account(attempts, outcome.pop("spent")),
    }
    history = History.from_json_lines(outcome.pop("history").splitlines())
    with tempfile.TemporaryDirectory(prefix="rm_ray-plots-") as folder:
        figures = plot_run(history.records, config.run.name, Path(folder))
        run.upload(Path(folder), PLOTS)
        for record in history.records:  # those that MLflow has are not sent again
            fitted.shipper.send(record)
        fitted.shipper.send_table("refused_rows.json", prepared.row_counts)
        documents = {"config.yaml": config.to_json(), "attempts.json": timeline}
        run_id, unsent = _close(
            prepared, fitted.shipper, lambda run: run.finish(documents, figures)
        )
    run.write_text(HISTORY, history.to_json_lines())
    result = {
        "name": config.run.name,
        **outcome,
        "train_pairs": prepared.train.num_pairs,
        "eval_pairs": prepared.held_out.num_pairs if prepared.held_out else 0,
        "refused": prepared.refused,
        "workers": config.cluster.num_workers,
        "mlflow_run_id": run_id,
        "mlflow_unsent": unsent,
        "mlflow_tracking_uri": prepared.mlflow.tracking_uri,
        "mlflow_view": prepared.mlflow.view_command,
        **timeline,
        "plots": run.join(PLOTS),
        "folder": run.path,
    }
    run.write_json(RESULT, result)
    return result


def _close(
    prepared: Prepared, shipper: MetricShipper, last: Callable[[MlflowRun], None]
) -> tuple[str | None, int]:
    """Send what is left and do the last thing; return the run's id and how much was not sent.

    The id is None where MLflow was never there.
    """
    unsent, opened = shipper.close(), shipper.run
    try:
        if opened is None or unsent:
            logger.warning(
                "MLflow at %s did not take %d items in time; history.jsonl has every metric",
                prepared.mlflow.tracking_uri,
                unsent,
            )
        else:
            last(opened)
    except MlflowAwayError as error:
        logger.warning("MLflow did not take the run's files: %s", error)
        unsent += 1
    if opened is None:
        return None, unsent
    record = prepared.run.read_json(RUN)
    prepared.run.write_json(RUN, {**record, "mlflow_run_id": opened.run_id})
    return opened.run_id, unsent


def _describe_not_finite(prepared: Prepared, found: dict[str, Any]) -> str:
    table = open_table(prepared.train.parts)
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
