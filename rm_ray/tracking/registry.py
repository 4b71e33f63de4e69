"""A run's models in MLflow's registry, by reference: MLflow gets no copy of the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException

from rm_ray.tracking.mlflow_run import naming_the_server, open_client

logger = logging.getLogger(__name__)

MODEL_TAG = "rm_ray.model"
"""Tag that tells a version of ours, by the run's key and the step."""

BEST, LAST = "best", "last"
"""Aliases."""


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model to register."""

    key: str
    """What tells it from every other: the run's key and the step."""
    source: str
    """Where its weights are."""
    run_id: str
    tags: Mapping[str, str] = field(default_factory=dict)
    """Such as its revision on the Hub."""


def register(tracking_uri: str, name: str, models: Mapping[str, RegisteredModel]) -> dict[str, int]:
    """Register models under their aliases, each once; return the versions' numbers.

    Raises:
        MlflowAwayError: MLflow does not answer, or refuses.
    """
    with naming_the_server(tracking_uri):
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
