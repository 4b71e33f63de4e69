"""A run's record, ``run.json``: the settings and data that a resumed run must match."""

from __future__ import annotations

import copy
import logging
import os
import platform
import subprocess
import uuid
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rm_ray.config.fields import flatten
from rm_ray.config.train_config import AUTO_NAMES, MAY_CHANGE_NAMES, ResolvedConfig, TrainConfig
from rm_ray.errors import InputError
from rm_ray.runs.layout import RESULT, RUN
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


def open_run(
    storage: Storage, config: TrainConfig, *, again: bool = False
) -> tuple[Storage, dict[str, Any] | None]:
    """Return the run's folder in a storage, and its ``result.json`` if the run is finished.

    ``again`` skips the check that the storage is writable, which may fail during an outage.

    Raises:
        InputError: the storage cannot be written, or the run began with another configuration.
    """
    if not again:
        storage.check_writable()
    run_folder = storage.folder(config.run.name)
    refuse_other_config(run_folder, config)
    result = run_folder.read_json(RESULT)
    if result is not None:
        _keep_changes(run_folder, config)
        logger.info(
            "run '%s' is finished; to train again, choose another --run.name", config.run.name
        )
    return run_folder, result


def refuse_other_config(run_folder: Storage, config: TrainConfig) -> None:
    """Compare the settings with those that the run of this name began with.

    Raises:
        InputError: settings differ; the message names each with both values.
    """
    started = run_folder.read_json(RUN)
    if started is None:
        return
    # A setting that did not exist when the run began had its default.
    before = flatten(TrainConfig().to_json()) | flatten(started["config"])
    now = flatten(config.to_json())
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and name not in MAY_CHANGE_NAMES
        and not (name in AUTO_NAMES and now.get(name) == "auto")
    ]
    if differing:
        raise InputError(
            f"run '{config.run.name}' in {run_folder.path} began with another configuration: "
            f"{'; '.join(differing)}. Resume it with the same one, or choose another --run.name"
        )


def open_record(
    run_folder: Storage,
    config: ResolvedConfig,
    *,
    identity: dict[str, str],
    data: dict[str, Any],
    template_date: date,
    num_steps: int,
) -> dict[str, Any]:
    """Return the run's record; create it for a new run, or update its settings.

    ``identity`` holds the hashes that a resumed run must match; ``data`` describes the pairs.
    """
    settings = config.to_json()
    record = run_folder.read_json(RUN)
    if record is None:
        record = {
            "key": uuid.uuid4().hex,
            "config": settings,
            "identity": identity,
            "data": data,
            "template_date": template_date.isoformat(),
            "steps": num_steps,
            "versions": versions(),
        }
        run_folder.write_json(RUN, record)
    elif record["config"] != settings:  # a resumed run may change some
        record["config"] = settings
        run_folder.write_json(RUN, record)
    return dict(record)


def _keep_changes(run_folder: Storage, config: TrainConfig) -> None:
    """Record changed settings of a finished run, except where and how it was trained."""
    record, now = run_folder.read_json(RUN), config.to_json()
    if record is None:  # the user kept only the result
        return
    changed = copy.deepcopy(record)
    for section, name in (field.split(".") for field in MAY_CHANGE_NAMES):
        if section not in ("cluster", "model", "run"):
            changed["config"][section][name] = now[section][name]
    if changed != record:
        run_folder.write_json(RUN, changed)


def refuse_other_data(record: dict[str, Any], identity: dict[str, str], *, name: str) -> None:
    """Compare pairs and tokens with those that the run of this name began with.

    Raises:
        InputError: they differ; the message names the parts.
    """
    before = record["identity"]
    differing = [part for part in identity if before.get(part) != identity[part]]
    if differing:
        raise InputError(
            f"run '{name}' began with other pairs, tokenizer or chat template (differing: "
            f"{', '.join(differing)}), although its configuration is the same. Restore them, or "
            "choose another --run.name"
        )


def versions() -> dict[str, str]:
    """Return the versions of the packages that results may depend on, and our commit."""
    packages = ("torch", "ray", "transformers", "accelerate", "deepspeed", "liger-kernel")
    found = {f"version.{name}": version(name) for name in packages}
    commit = _find_commit()
    return {
        **found,
        "version.python": platform.python_version(),
        **({"version.rm_ray": commit} if commit else {}),
    }


def _find_commit() -> str | None:
    """Return the commit of this code, marked if files are modified; None if unknown.

    Outside of a clone it comes from ``rm_ray/commit.txt`` (written into an image) or from
    ``RM_RAY_COMMIT`` (set for a submitted job).
    """
    root = Path(__file__).resolve().parents[2]
    file = root / "rm_ray" / "commit.txt"
    elsewhere = file.read_text().strip() if file.exists() else os.environ.get("RM_RAY_COMMIT")
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel", "HEAD"], **_QUIET)
        changed = subprocess.run([*git, "status", "--porcelain"], **_QUIET)
    except OSError:
        return elsewhere or None  # git is not installed
    if top.returncode or top.stdout.split()[0] != str(root):
        return elsewhere or None
    return str(top.stdout.split()[1][:12]) + "+changes" * bool(changed.stdout.strip())


_QUIET: dict[str, Any] = {"capture_output": True, "text": True}
