"""Contents of a run's folder before the first step: the record, and the model without weights."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from rm_ray.audit.run_summary import keep_audit
from rm_ray.model.build import build_without_weights
from rm_ray.model.export import export_skeleton
from rm_ray.preflight.resolved_run import ResolvedRun, describe_data
from rm_ray.publish.base_hash import hash_base
from rm_ray.publish.hub import HubAwayError
from rm_ray.runs.checkpoint_names import list_checkpoints
from rm_ray.runs.layout import RUN, SKELETON
from rm_ray.runs.record import open_record, refuse_other_base, refuse_other_data

logger = logging.getLogger(__name__)


def begin_record(resolved: ResolvedRun) -> dict[str, Any]:
    """Return the run's record; create it for a new run, verify it for a resumed one.

    Raises:
        InputError: the run of this name started with different pairs or tokens, or with another
            base model of which only a part is trained.
    """
    run_folder, identity = resolved.run_folder, resolved.identity
    if not (run_folder.exists(RUN) and run_folder.exists(SKELETON)):
        write_skeleton(resolved)
    record = open_record(
        run_folder,
        resolved.config,
        identity=identity,
        data=describe_data(resolved),
        template_date=resolved.template_date,
        num_steps=resolved.plan.steps.total,
        head=resolved.head,
    )
    refuse_other_data(record, identity, name=resolved.config.run.name)
    keep_audit(run_folder, record)
    return record if resolved.config.trains_all else _check_base(record, resolved)


def _check_base(record: dict[str, Any], resolved: ResolvedRun) -> dict[str, Any]:
    """Return the record with the hash of the base model, which must not change.

    Raises:
        InputError: it has changed.
    """
    config, before = resolved.config.model, record.get("base_hash", "")
    try:
        now = hash_base(config)
    except HubAwayError as error:
        logger.warning("cannot check whether '%s' has changed: %s", config.name_or_path, error)
        return record
    refuse_other_base(before, now, model=config.name_or_path)
    if before:
        return record
    record = {**record, "base_hash": now}
    if not list_checkpoints(resolved.run_folder):  # those know themselves what they belong to
        resolved.run_folder.write_json(RUN, record)
    return record


def write_skeleton(resolved: ResolvedRun) -> None:
    """Write the exported model's files except its weights, for publishing checkpoints."""
    config = resolved.config.model
    model = build_without_weights(config, resolved.tokenizer)
    with tempfile.TemporaryDirectory(prefix="rm_ray-skeleton-") as folder:
        dtype = getattr(torch, config.dtype)
        export_skeleton(model, resolved.tokenizer, Path(folder), dtype=dtype)
        resolved.run_folder.upload(Path(folder), SKELETON)
