"""Settings of MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rm_ray.config.checks import refuse_password
from rm_ray.config.fields import MAY_CHANGE


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """Where to log metrics and register the model."""

    tracking_uri: str | None = None
    """MLflow server or database; by default an SQLite file in run.storage_path."""

    experiment: str = "rm_ray"
    """MLflow experiment of the run."""

    registered_model: Annotated[str | None, MAY_CHANGE] = None
    """Name in MLflow's model registry under which to register the final model, by reference to its
    weights; none registers nothing."""

    def __post_init__(self) -> None:
        where = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
        refuse_password("mlflow.tracking_uri", self.tracking_uri, where)
