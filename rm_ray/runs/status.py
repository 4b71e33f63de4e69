"""Status of the runs in a storage path, read only from their folders."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_ray.runs.attempts import ATTEMPTS, Attempt
from rm_ray.runs.checkpoint_names import list_checkpoints, step_of
from rm_ray.runs.late_evaluations import read_records
from rm_ray.runs.layout import RESULT, RUN
from rm_ray.runs.manifest import read_manifest
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

SILENT_S = 60.0
"""A running run writes every 5 s; after this long without a write, its command is gone."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Status of one run."""

    name: str
    state: str
    """``begun``, ``starting``, ``running``, ``silent`` (its command is gone), ``finished``,
    ``unreadable``, or how the latest attempt ended."""
    step: int = 0
    total_steps: int | None = None
    pairs_per_second: float | None = None
    seconds_left: float | None = None
    updated: float | None = None
    """Last update in Unix seconds."""
    checkpoint_step: int | None = None
    """Step of the newest checkpoint that has a manifest."""
    num_attempts: int = 0
    num_workers: int = 0
    goodput: float | None = None
    mirror: str = ""
    """Counts of published, waiting and refused versions; empty without a Hub repository."""
    mlflow_unsent: int = 0
    cause: str = ""
    """Why the latest attempt ended."""
    held_out: dict[str, float] = field(default_factory=dict)
    """Latest saved accuracies and scores of a run with named sets, by metric."""


def read_status(run_folder: Storage, *, now: float | None = None) -> RunStatus | None:
    """Return a run's status; None if the folder holds no run."""
    name = run_folder.path.rstrip("/").rpartition("/")[2]
    try:
        return _read_status(run_folder, name, time.time() if now is None else now)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        # written by another version of this project, or by something else
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
    # The storage's clock: the clock of the command's machine may be wrong.
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
        held_out=_held_out(run_folder, record, result),
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
    """Return an attempt's pace, including the time spent on evaluation and checkpoints."""
    seconds = sum(attempt.spent.values())
    steps = attempt.step - (attempt.first_step or 0)
    return steps / seconds if seconds > 0 and steps > 0 else None


def _newest_checkpoint(run_folder: Storage) -> int | None:
    for name in list_checkpoints(run_folder):
        if read_manifest(run_folder, name) is not None:
            return step_of(name)
    return None


def _held_out(
    run_folder: Storage, record: Mapping[str, Any], result: Mapping[str, Any] | None
) -> dict[str, float]:
    """Return the newest saved accuracy and score of each held-out set; nothing without sets."""
    if not record.get("config", {}).get("evaluation", {}).get("sets"):
        return {}
    if result is not None:
        return _choose_shown(result["metrics"])
    late = {record.step: record.metrics for record in read_records(run_folder)}
    for name in list_checkpoints(run_folder):
        manifest = read_manifest(run_folder, name)
        if manifest is None:
            continue
        if found := _choose_shown({**manifest.metrics, **late.get(manifest.step, {})}):
            return found
    return {}


def _choose_shown(metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value
        for name, value in metrics.items()
        if re.fullmatch(r"eval/[^/]+/(accuracy|score)", name)
    }


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
    """Return all runs of a storage path, most recently updated first."""
    folders = [entry for entry in storage.list() if entry.is_folder]
    found = [read_status(storage.folder(entry.name)) for entry in folders]
    return sorted((s for s in found if s is not None), key=lambda s: -(s.updated or 0.0))


def status_table(runs: Sequence[RunStatus], *, now: float | None = None) -> str:
    """Format the runs as a table for people."""
    now = time.time() if now is None else now
    header = ("run", "state", "step", "pairs/s", "left", "heard", "checkpoint", "attempts",
              "workers", "goodput", "Hub", "MLflow")  # fmt: skip
    rows = [header, *(_row(run, now) for run in runs)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"{run.name}: {_figures(run.held_out)}" for run in runs if run.held_out]
    lines += [f"{run.name}: {run.cause}" for run in runs if run.cause and run.state != "finished"]
    return "\n".join(lines)


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


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
