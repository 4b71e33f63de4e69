"""Registration of a finished run's models in MLflow, with sources on the Hub or in the run."""

from __future__ import annotations

import logging
from typing import Any

from huggingface_hub import constants

from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.errors import MlflowAwayError
from rm_ray.runs.layout import EXPORT, RESULT, RUN
from rm_ray.runs.retention import best_step
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage, below
from rm_ray.tracking.registry import BEST, LAST, RegisteredModel, register
from rm_ray.tracking.target import MlflowTarget

logger = logging.getLogger(__name__)


def register_models(folder: str, repo_id: str | None) -> bool:
    """Register a run's last and best models; return False if a retry is needed.

    ``folder`` is the run's path or URI. Models on the Hub are registered with their Hub URL.
    """
    run_folder = Storage.open(folder)
    record, result = run_folder.read_json(RUN), run_folder.read_json(RESULT)
    if record is None or result is None:
        return True  # registered once the run is finished
    config = MlflowConfig(**record["config"]["mlflow"])
    if config.registered_model is None:
        return True
    storage = Storage(run_folder.filesystem, run_folder.path.rstrip("/").rpartition("/")[0])
    target = MlflowTarget.of(config, storage)
    if result["mlflow_run_id"] is None:
        logger.warning("the model is not registered: the run is not in MLflow yet")
        return False
    place = folder if "://" in folder else run_folder.path  # expand ~ for MLflow's clients
    models = choose_models(place, record, result, _published(run_folder, repo_id), repo_id)
    is_local = any("://" not in model.source for model in models.values())
    if is_local and target.tracking_uri.startswith("http"):
        logger.warning(
            "the model is not registered: MLflow servers refuse local paths such as %s. Publish "
            "it with hub.repo_id, or set run.storage_path to a URI",
            models[LAST].source,
        )
        return True  # a retry would not help
    try:
        numbers = register(target.tracking_uri, config.registered_model, models)
    except MlflowAwayError as error:
        logger.warning("the model is not registered: %s", error)
        return False
    logger.info(
        "registered in MLflow as '%s': %s",
        config.registered_model,
        ", ".join(f"version {number} ({alias})" for alias, number in numbers.items()),
    )
    return True


def choose_models(
    folder: str,
    record: dict[str, Any],
    result: dict[str, Any],
    published: dict[int, Version],
    repo_id: str | None,
) -> dict[str, RegisteredModel]:
    """Return the models to register, by alias.

    A best model other than the last is registered only if published: clients can load it only from
    the Hub.
    """
    last = int(result["steps"])
    best = best_step(result, best_by=record["config"]["checkpoint"].get("keep_best_by"))
    steps = {LAST: last} | ({BEST: best} if best == last or best in published else {})
    models = {}
    for alias, step in steps.items():
        source, tags = below(folder, EXPORT), {"step": str(step)}
        if (version := published.get(step)) is not None:
            source = f"{constants.ENDPOINT}/{repo_id}/tree/{version.tag}"
            tags |= {"hub.repo_id": str(repo_id), "hub.revision": version.tag}
            tags |= {"hub.commit": version.commit}
        models[alias] = RegisteredModel(
            key=f"{record['key']}-{step}-{tags.get('hub.commit', '')}",
            source=source,
            run_id=result["mlflow_run_id"],
            tags=tags,
        )
    return models


def _published(run_folder: Storage, repo_id: str | None) -> dict[int, Version]:
    if repo_id is None:
        return {}
    versions = Versions(run_folder=run_folder, repo_id=repo_id).read()
    return {step: version for step, version in versions.items() if version.state == "published"}
