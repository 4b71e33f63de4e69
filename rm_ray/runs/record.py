"""What a run began with, kept in its folder: the same name goes on with the same."""

from __future__ import annotations

import copy
import logging
import os
import platform
import subprocess
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_ray.config.train_config import CHOSEN, TrainConfig, flatten
from rm_ray.errors import InputError
from rm_ray.runs.layout import RESULT, RUN
from rm_ray.storage import Storage

if TYPE_CHECKING:  # takes seconds to import, which looking at a finished run does not need
    from rm_ray.preflight.resolve import ResolvedRun

logger = logging.getLogger(__name__)

_MAY_CHANGE = (
    "run.deterministic",
    "run.storage_path",
    "cluster.num_workers",
    "cluster.use_gpu",
    "cluster.cpus_per_worker",
    "cluster.zero_stage",
    "cluster.offload",
    "cluster.zero_secondary_partition",
    "model.gradient_checkpointing",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.storage_patience_s",
    "optimizer.max_skipped_steps",
    "mlflow.registered_model",
    "hub.repo_id",
    "hub.private",
    "hub.every",
    "hub.revision_prefix",
    "hub.patience_s",
)
"""Fields that a resumed run may change: what trains and where, not what is trained."""


def open_run(config: TrainConfig, *, again: bool = False) -> tuple[Storage, dict[str, Any] | None]:
    """Return the run's folder, and its ``result.json`` if the run is finished.

    Raises:
        InputError: the folder cannot be written (``again``, it may fail for a while), or its run
            began with another configuration.
    """
    storage = Storage.open(config.run.storage_path)
    if not again:
        storage.check_writable()
    run_folder = storage.folder(config.run.name)
    refuse_other_config(run_folder, config)
    result = run_folder.read_json(RESULT)
    if result is not None:
        _keep_changes(run_folder, config)
        logger.info("run '%s' is finished; give another --run.name to train anew", config.run.name)
    return run_folder, result


def refuse_other_config(run_folder: Storage, config: TrainConfig) -> None:
    """Compare with what the run of this name began with.

    Raises:
        InputError: naming each field that differs, with both values.
    """
    started = run_folder.read_json(RUN)
    if started is None:
        return
    # What the run began without, as a setting that there was not yet, it had by default.
    before = flatten(TrainConfig().to_json()) | flatten(started["config"])
    now = flatten(config.to_json())
    differing = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and name not in _MAY_CHANGE
        and not (name in CHOSEN and now.get(name) == "auto")
    ]
    if differing:
        raise InputError(
            f"run '{config.run.name}' in {run_folder.path} began with another configuration: "
            f"{'; '.join(differing)}. Resume it with the same one, or choose another --run.name"
        )


def open_record(resolved: ResolvedRun, data: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the run since its beginning, which may be now.

    Its settings are those of the newest command, which may change some of them.
    """
    record = resolved.run_folder.read_json(RUN)
    if record is None:
        record = {
            "key": uuid.uuid4().hex,
            "config": resolved.config.to_json(),
            "identity": resolved.identity,
            "data": data,
            "template_date": resolved.template_date.isoformat(),
            "steps": resolved.plan.steps.total,
            "versions": versions(),
        }
        resolved.run_folder.write_json(RUN, record)
    elif record["config"] != resolved.config.to_json():  # what a resumed run may change
        record["config"] = resolved.config.to_json()
        resolved.run_folder.write_json(RUN, record)
    return dict(record)


def _keep_changes(run_folder: Storage, config: TrainConfig) -> None:
    """Note what this command has changed for a finished run: how it is published and registered.

    What it was trained on stays.
    """
    record, now = run_folder.read_json(RUN), config.to_json()
    if record is None:  # only its result was kept: nothing goes on from here
        return
    changed = copy.deepcopy(record)
    for section, name in (field.split(".") for field in _MAY_CHANGE):
        if section not in ("cluster", "model", "run"):
            changed["config"][section][name] = now[section][name]
    if changed != record:
        run_folder.write_json(RUN, changed)


def refuse_other_data(resolved: ResolvedRun, record: dict[str, Any]) -> None:
    """Compare pairs and tokens with those that the run of this name began with.

    Raises:
        InputError: saying what differs.
    """
    then, now = record["identity"], resolved.identity
    differing = [name for name in now if then.get(name) != now[name]]
    if differing:
        raise InputError(
            f"run '{resolved.config.run.name}' began with other pairs, tokenizer or chat template "
            f"than those of now (differing: {', '.join(differing)}), though its configuration is "
            "the same; restore them, or choose another --run.name"
        )


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    packages = ("torch", "ray", "transformers", "accelerate", "deepspeed", "liger-kernel")
    found = {f"version.{name}": version(name) for name in packages}
    commit = _find_commit()
    return {
        **found,
        "version.python": platform.python_version(),
        **({"version.rm_ray": commit} if commit else {}),
    }


def _find_commit() -> str | None:
    """Return the commit of this code, marked where files differ; None where nothing says it.

    Outside of a clone an image says it in ``rm_ray/commit.txt``, and who submits a job in
    ``RM_RAY_COMMIT``.
    """
    root = Path(__file__).resolve().parents[2]
    told = root / "rm_ray" / "commit.txt"
    elsewhere = told.read_text().strip() if told.exists() else os.environ.get("RM_RAY_COMMIT")
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel", "HEAD"], **_QUIET)
        changed = subprocess.run([*git, "status", "--porcelain"], **_QUIET)
    except OSError:
        return elsewhere or None  # there is no git here
    if top.returncode or top.stdout.split()[0] != str(root):
        return elsewhere or None
    return str(top.stdout.split()[1][:12]) + "+changes" * bool(changed.stdout.strip())


_QUIET: dict[str, Any] = {"capture_output": True, "text": True}
