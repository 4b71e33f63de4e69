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
from rm_ray.config.sections.data import BUILTIN
from rm_ray.config.train_config import AUTO_NAMES, MAY_CHANGE_NAMES, ResolvedConfig, TrainConfig
from rm_ray.errors import InputError
from rm_ray.runs.layout import FORMAT, RESULT, RUN, refuse_other_format
from rm_ray.storage import Storage

logger = logging.getLogger(__name__)


def open_run(
    storage: Storage, config: TrainConfig, *, again: bool = False
) -> tuple[Storage, dict[str, Any] | None]:
    """Return the run's folder in a storage, and its ``result.json`` if the run is finished.

    ``again`` skips the check that the storage is writable, which may fail during an outage.

    Raises:
        InputError: the storage cannot be written, or the run began with another configuration or
            in another format.
    """
    if not again:
        storage.check_writable()
    run_folder = storage.folder(config.run.name)
    result, record = run_folder.read_json(RESULT), run_folder.read_json(RUN)
    if result is None and record is not None:
        refuse_other_format(record, f"'{run_folder.path}'")
    refuse_other_config(run_folder, config)
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
    differing = find_differing(started["config"], config)
    if differing:
        raise InputError(
            f"run '{config.run.name}' in {run_folder.path} began with another configuration: "
            f"{'; '.join(differing)}. Resume it with the same one, or choose another --run.name"
        )


def find_differing(started: dict[str, Any], config: TrainConfig) -> list[str]:
    """Return each setting that may not change and did, with both values.

    ``started`` has the settings of a record. One that did not exist then had its default.
    """
    before = flatten(TrainConfig().to_json()) | flatten(started)
    now = flatten(config.to_json())
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and not _may_change(name, config)
        and not (name in AUTO_NAMES and now.get(name) == "auto")
    ]


def _may_change(name: str, config: TrainConfig) -> bool:
    """Return whether a resumed run may change a setting; with drop_overlap, sets decide the data.

    That their rows stay is checked by ``refuse_other_data``.
    """
    decides_data = name == "evaluation.sets" and config.data.drop_overlap
    return name in MAY_CHANGE_NAMES and not decides_data


def open_record(
    run_folder: Storage,
    config: ResolvedConfig,
    *,
    identity: dict[str, str],
    data: dict[str, Any],
    template_date: date,
    num_steps: int,
    head: str = "new",
) -> dict[str, Any]:
    """Return the run's record; create it for a new run, or update its settings.

    ``identity`` holds the hashes that a resumed run must match; ``data`` describes the pairs;
    ``head`` is the weight of the base model that the head starts from, 'new' or 'unknown'.
    """
    settings = config.to_json()
    record = run_folder.read_json(RUN)
    if record is None:
        record = {
            "format": FORMAT,
            "key": uuid.uuid4().hex,
            "config": settings,
            "identity": identity,
            "data": data,
            "template_date": template_date.isoformat(),
            "steps": num_steps,
            "head": head,
            "versions": versions(),
        }
        run_folder.write_json(RUN, record)
        return dict(record)
    new = {name: found for name, found in identity.items() if _is_new_set(name, record)}
    described = {name: data[name] for name in new}
    if record["config"] != settings or new:  # a resumed run may change some
        record["config"] = settings
        record["identity"] |= new
        record["data"] |= described
        run_folder.write_json(RUN, record)
    return dict(record)


def _is_new_set(name: str, record: dict[str, Any]) -> bool:
    """Return whether a part of a run's identity is a named set that its record does not know."""
    return name.startswith("eval/") and name not in record["identity"]


def _keep_changes(run_folder: Storage, config: TrainConfig) -> None:
    """Record changed settings of a finished run, except where and how it was trained."""
    record, now = run_folder.read_json(RUN), config.to_json()
    if record is None:  # the user kept only the result
        return
    changed = copy.deepcopy(record)
    for section, name in (field.split(".") for field in MAY_CHANGE_NAMES):
        is_published = (section, name) == ("model", "max_shard_size")
        if is_published or section not in ("cluster", "evaluation", "lora", "model", "run"):
            changed["config"].setdefault(section, {})[name] = now[section][name]
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
        are_sets = all(part.startswith("eval/") for part in differing)
        others = "name the set of evaluation.sets anew" if are_sets else "choose another --run.name"
        raise InputError(
            f"run '{name}' began with other pairs, tokenizer or chat template (differing: "
            f"{', '.join(differing)}), although its configuration is the same. Restore them, or "
            f"{others}"
        )


def refuse_other_base(before: str, now: str, *, model: str) -> None:
    """Compare the hash of a base model with that of the one that a run began with.

    An empty hash is unknown. Random weights have no files: their hash is that of their config and
    PyTorch's version, and their config that of transformers' defaults.

    Raises:
        InputError: they differ.
    """
    if before and now and before != now:
        is_random = model == BUILTIN or model.endswith(".json")
        parts, remedy = (
            ("config, as the installed PyTorch and transformers read it, has", "Restore them")
            if is_random
            else ("config or weights have", "Restore the model, name its commit in model.revision")
        )
        raise InputError(
            f"model.name_or_path '{model}' has changed since the run began: its {parts} "
            f"the hash {now[:12]}, and had {before[:12]}. Checkpoints hold only what is "
            f"trained, so they fit no other weights. {remedy}, or choose another --run.name"
        )


def versions() -> dict[str, str]:
    """Return the versions of the packages that results may depend on, and our commit."""
    packages = (
        "torch", "ray", "transformers", "accelerate", "deepspeed", "liger-kernel", "peft",
        "bitsandbytes",
    )  # fmt: skip
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
