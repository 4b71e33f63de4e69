"""How the runs of a storage path are doing, read from their folders alone."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import fs as pafs

from rm_ray.config.train_config import RunConfig
from rm_ray.errors import InputError
from rm_ray.logs import log_to_stdout
from rm_ray.runs.attempts import ATTEMPTS, Attempt, list_checkpoints, step_of
from rm_ray.runs.layout import RESULT, RUN
from rm_ray.runs.manifest import read_manifest
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)

SILENT_S = 60.0
"""A run under way writes every 5 s; one that has not for so long has lost its command."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run, as its folder tells it."""

    name: str
    state: str
    """``running``, ``silent`` (its command is gone), how the latest attempt ended, or
    ``unreadable``."""
    step: int = 0
    total_steps: int | None = None
    pairs_per_second: float | None = None
    seconds_left: float | None = None
    updated: float | None = None
    """When it was last heard of, in seconds since 1970."""
    checkpoint_step: int | None = None
    """Step of the newest checkpoint that has a manifest."""
    num_attempts: int = 0
    num_workers: int = 0
    goodput: float | None = None
    mirror: str = ""
    """Versions on the Hub, and those that wait or were refused; empty where none are wanted."""
    mlflow_unsent: int = 0
    cause: str = ""
    """Why the latest attempt ended."""


def read_status(run_folder: Storage, *, now: float | None = None) -> RunStatus | None:
    """Return how a run is doing; None where the folder holds none."""
    name = run_folder.path.rstrip("/").rpartition("/")[2]
    try:
        return _read_status(run_folder, name, time.time() if now is None else now)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        # of another version of this project, or written by something else
        return RunStatus(name=name, state="unreadable", cause=f"{type(error).__name__}: {error}")


def _read_status(run_folder: Storage, name: str, now: float) -> RunStatus | None:
    record, result = run_folder.read_json(RUN), run_folder.read_json(RESULT)
    attempts = [Attempt(**entry) for entry in run_folder.read_json(ATTEMPTS) or []]
    if record is None and not attempts:
        return None
    record = record or {}
    latest = attempts[-1] if attempts else None
    total = record.get("steps")
    batch = record.get("config", {}).get("batch", {}).get("global_batch_size")
    step = result["steps"] if result else latest.step if latest else 0
    speed, left = None, None
    if result is not None:
        speed = result["pairs_per_second"]
    elif latest is not None and batch:
        pace = _steps_per_second(latest)
        speed = pace * batch if pace else None
        left = (total - step) / pace if pace and total and latest.ending == "running" else None
    # By the storage's clock: that of the command's machine may be another.
    updated = (run_folder.modified(ATTEMPTS) or latest.updated) if latest else None
    state = _describe_state(latest, result, now - (updated or now))
    return RunStatus(
        name=name,
        state=state,
        step=step,
        total_steps=total or (result["steps"] if result else None),
        pairs_per_second=speed,
        seconds_left=left if state == "running" else None,
        updated=updated,
        checkpoint_step=_newest_checkpoint(run_folder),
        num_attempts=len(attempts),
        num_workers=latest.num_workers if latest else 0,
        goodput=result["time"]["goodput"] if result else None,
        mirror=_describe_mirror(run_folder, record),
        mlflow_unsent=(result or {}).get("mlflow_unsent", latest.mlflow_unsent if latest else 0),
        cause=latest.cause.splitlines()[0] if latest and latest.cause else "",
    )


def _describe_state(
    latest: Attempt | None, result: Mapping[str, Any] | None, silent_s: float
) -> str:
    if result is not None:
        return "finished"
    if latest is None:
        return "begun"
    if latest.ending == "running" and silent_s > SILENT_S:
        return "silent"
    if latest.ending == "running" and latest.first_step is None:
        return "starting"
    return latest.ending


def _steps_per_second(attempt: Attempt) -> float | None:
    """Return the pace of an attempt, all that it spends its time on counted."""
    seconds = sum(attempt.spent.values())
    steps = attempt.step - (attempt.first_step or 0)
    return steps / seconds if seconds > 0 and steps > 0 else None


def _newest_checkpoint(run_folder: Storage) -> int | None:
    for name in list_checkpoints(run_folder):
        if read_manifest(run_folder, name) is not None:
            return step_of(name)
    return None


def _describe_mirror(run_folder: Storage, record: Mapping[str, Any]) -> str:
    repo_id = record.get("config", {}).get("hub", {}).get("repo_id")
    if repo_id is None:
        return ""
    versions: Sequence[Version] = list(
        Versions(run_folder=run_folder, repo_id=repo_id).read().values()
    )
    counts = {
        state: sum(version.state == state for version in versions)
        for state in ("published", "waiting", "refused")
    }
    return ", ".join(f"{n} {state}" for state, n in counts.items() if n or state == "published")


def list_runs(storage: Storage) -> list[RunStatus]:
    """Return all runs of a storage path, the one heard of last first."""
    folders = [info for info in storage.list() if info.type == pafs.FileType.Directory]
    found = [read_status(storage.folder(info.base_name)) for info in folders]
    return sorted((s for s in found if s is not None), key=lambda s: -(s.updated or 0.0))


def status_table(runs: Sequence[RunStatus], *, now: float | None = None) -> str:
    """Return the runs as people read them, a line each."""
    now = time.time() if now is None else now
    header = ("run", "state", "step", "pairs/s", "left", "heard", "checkpoint", "attempts",
              "workers", "goodput", "Hub", "MLflow")  # fmt: skip
    rows = [header, *(_row(run, now) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"{run.name}: {run.cause}" for run in runs if run.cause and run.state != "finished"]
    return "\n".join(lines)


def _row(run: RunStatus, now: float) -> tuple[str, ...]:
    total = "?" if run.total_steps is None else f"{run.total_steps:,}"
    return (
        run.name,
        run.state,
        f"{run.step:,}/{total}",
        "-" if run.pairs_per_second is None else f"{run.pairs_per_second:.1f}",
        "-" if run.seconds_left is None else _duration(run.seconds_left),
        "-" if run.updated is None else f"{_duration(max(now - run.updated, 0))} ago",
        "-" if run.checkpoint_step is None else f"{run.checkpoint_step:,}",
        str(run.num_attempts),
        str(run.num_workers),
        "-" if run.goodput is None else f"{run.goodput:.2f}",
        run.mirror or "-",
        "-"
        if run.state == "unreadable"
        else f"{run.mlflow_unsent} unsent"
        if run.mlflow_unsent
        else "up to date",
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def main_status(arguments: Sequence[str]) -> int:
    """List runs; return the exit status."""
    default = RunConfig().storage_path
    parser = argparse.ArgumentParser(
        prog="python jobs/status.py",
        description="List the runs of a storage path: state, step, speed, time left, last "
        "checkpoint, what the Hub and MLflow lack. It reads the runs' folders alone, so that it "
        "works also when no cluster is up.",
    )
    parser.add_argument(
        "storage_path", nargs="?", default=default, help=f"run.storage_path; {default}"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a run, a line each")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="again and again, so often")
    options = parser.parse_args(arguments)
    if options.watch is not None and not options.watch > 0:
        parser.error(f"--watch {options.watch:g}: must be more than 0 seconds")
    log_to_stdout()
    try:
        return _show(Storage.open(options.storage_path), options.json, options.watch)
    except (InputError, OSError) as error:
        logger.error("error: %s", error)
        return 2
    except KeyboardInterrupt:
        return 130


def _show(storage: Storage, as_json: bool, watch: float | None) -> int:
    while True:
        runs = list_runs(storage)
        if as_json:
            for run in runs:
                logger.info("%s", json.dumps(asdict(run)))
        elif runs:
            logger.info("%s", status_table(runs))
        else:
            logger.info("there are no runs in %s", storage.path)
        if watch is None:
            return 0
        time.sleep(watch)
