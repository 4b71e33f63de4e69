"""The command that lists the runs of a storage path."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict

from rm_ray.commands.exits import ExitStatus, run_command
from rm_ray.config.sections.run import RunConfig
from rm_ray.runs.status import list_runs, status_table
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """List runs; return the exit status."""
    return run_command(_list, arguments)


def _list(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    storage = Storage.open(options.storage_path)
    _show(storage, as_json=options.json)
    while options.watch is not None:
        time.sleep(options.watch)
        _show(storage, as_json=options.json)
    return ExitStatus.DONE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    default = RunConfig().storage_path
    parser = argparse.ArgumentParser(
        prog="python jobs/status.py",
        description="List the runs of a storage path: state, step, speed, time left, last "
        "checkpoint, and what the Hub and MLflow are missing. It only reads the runs' folders, so "
        "it works without a cluster.",
    )
    parser.add_argument(
        "storage_path", nargs="?", default=default, help=f"run.storage_path; default {default}"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="repeat every SECONDS")
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        parser.error(f"--watch {options.watch:g}: must be more than 0 seconds")
    return options


def _show(storage: Storage, *, as_json: bool) -> None:
    runs = list_runs(storage)
    if as_json:
        for run in runs:
            logger.info("%s", json.dumps(asdict(run)))
    elif runs:
        logger.info("%s", status_table(runs))
    else:
        logger.info("there are no runs in %s", storage.path)
