"""Settings of MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from rm_ray.config.checks import refuse_password, require
from rm_ray.config.fields import MAY_CHANGE

LONGEST = 500
"""Letters of an experiment's name that MLflow accepts at most."""


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
        # What MLflow refuses, but only when training has begun.
        is_name = len(self.experiment.strip()) > 0 and len(self.experiment) <= LONGEST
        require(is_name, "mlflow.experiment", self.experiment, f"a name of 1 to {LONGEST} letters")
        model = self.registered_model
        is_name = model is None or (bool(model.strip()) and not {"/", ":"} & set(model))
        require(is_name, "mlflow.registered_model", model, "a name, and without '/' and ':'")
