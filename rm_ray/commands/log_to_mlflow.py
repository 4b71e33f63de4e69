"""The command that backfills MLflow with a run's metrics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rm_ray.commands.exits import RERUN, ExitStatus, run_command


def main(arguments: Sequence[str]) -> int:
    """Log a run's metrics to MLflow; return the exit status."""
    return run_command(_backfill, arguments, on_interrupt=RERUN)


def _backfill(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    from rm_ray.tracking.backfill import backfill  # keep --help fast: this imports MLflow

    backfill(options.run, options.tracking_uri)
    return ExitStatus.DONE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python jobs/log_to_mlflow.py",
        description="Log the metrics of a run that MLflow is missing. Safe to rerun at any time: "
        "nothing is sent twice.",
    )
    parser.add_argument("run", help="the run's folder or URI: run.storage_path/run.name")
    parser.add_argument(
        "--tracking-uri", help="an MLflow server or database; by default the run's own"
    )
    return parser.parse_args(arguments)
