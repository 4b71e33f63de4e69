"""Registration of a run's models in MLflow by reference; MLflow gets no copy of the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException

from rm_ray.tracking.mlflow_run import open_client, translate_errors

logger = logging.getLogger(__name__)

MODEL_TAG = "rm_ray.model"
"""Tag that identifies a version of ours by the run's key and the step."""

BEST, LAST = "best", "last"
"""Aliases."""


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model to register."""

    key: str
    """Unique key: the run's key and the step."""
    source: str
    """Location of the weights."""
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags of the version, such as its revision on the Hub."""


def register(tracking_uri: str, name: str, models: Mapping[str, RegisteredModel]) -> dict[str, int]:
    """Register each model once, under its alias; return the version number by alias.

    Raises:
        MlflowAwayError: MLflow does not answer, or rejects a request.
    """
    with translate_errors(tracking_uri):
        client = open_client(tracking_uri)
        try:
            client.create_registered_model(name)
        except (RestException, MlflowException) as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        there: dict[str, ModelVersion] = {
            version.tags[MODEL_TAG]: version
            for version in client.search_model_versions(f"name = '{name}'")
            if MODEL_TAG in version.tags
        }
        numbers = {}
        for alias, model in models.items():
            version = there.get(model.key)
            if version is None:
                version = client.create_model_version(
                    name,
                    source=model.source,
                    run_id=model.run_id,
                    tags={MODEL_TAG: model.key, **model.tags},
                )
                there[model.key] = version
            client.set_registered_model_alias(name, alias, version.version)
            numbers[alias] = int(version.version)
    return numbers
