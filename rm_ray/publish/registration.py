"""The models of a finished run in MLflow's registry, which refers to the Hub or to the run."""

from __future__ import annotations

import logging
from typing import Any

from huggingface_hub import constants

from rm_ray.config.train_config import MlflowConfig
from rm_ray.runs.attempts import step_of
from rm_ray.runs.layout import EXPORT, RESULT, RUN
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage, below
from rm_ray.tracking.registry import BEST, LAST, RegisteredModel, register
from rm_ray.tracking.target import MlflowAwayError, MlflowTarget

logger = logging.getLogger(__name__)


def register_models(folder: str, repo_id: str | None) -> bool:
    """Register the last model of a run and the best one; tell whether all is registered.

    ``folder`` is the run's, as a path or a URI. A model on the Hub is referred to there.
    """
    run_folder = Storage.open(folder)
    record, result = run_folder.read_json(RUN), run_folder.read_json(RESULT)
    if record is None or result is None:
        return True  # it is registered once the run is finished
    config = MlflowConfig(**record["config"]["mlflow"])
    if config.registered_model is None:
        return True
    storage = Storage(run_folder.filesystem, run_folder.path.rstrip("/").rpartition("/")[0])
    target = MlflowTarget.of(config, storage)
    if result["mlflow_run_id"] is None:
        logger.warning("the model is not registered: the run is not in MLflow yet")
        return False
    place = folder if "://" in folder else run_folder.path  # without a ~, for MLflow's clients
    models = choose_models(place, record, result, _published(run_folder, repo_id), repo_id)
    is_local = any("://" not in model.source for model in models.values())
    if is_local and target.tracking_uri.startswith("http"):
        logger.warning(
            "the model is not registered: MLflow's servers refuse local paths such as %s. Publish "
            "it with hub.repo_id, or keep runs at a URI",
            models[LAST].source,
        )
        return True  # to try again would not help
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
    """Return what to register under which alias.

    A best model other than the last is there only on the Hub, in a form that clients can load.
    """
    last = int(result["steps"])
    best = step_of(str(result["best_checkpoint"] or "").rpartition("/")[2]) or last
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
