"""Where a run's metrics go, and what MLflow is told of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from rm_ray.config import MlflowConfig, flatten
from rm_ray.storage import Storage


@dataclass(frozen=True, kw_only=True)
class MlflowTarget:
    """An MLflow server or database, and an experiment in it."""

    tracking_uri: str
    experiment: str

    @classmethod
    def of(cls, config: MlflowConfig, storage: Storage) -> MlflowTarget:
        """Return what the config names, or else an SQLite file in the storage."""
        uri = config.tracking_uri or f"sqlite:///{storage.join('mlflow.db')}"
        return cls(tracking_uri=uri, experiment=config.experiment)

    @property
    def view_command(self) -> str:
        """The command that shows the runs in a browser, or the address that does already."""
        if self.tracking_uri.startswith("http"):
            return self.tracking_uri
        start = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {sys.executable} -m mlflow ui"
        return f"{start} --backend-store-uri {self.tracking_uri}"


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """A run as MLflow knows it; the key finds it again, whatever it is called."""

    name: str
    key: str
    params: dict[str, Any]
    tags: dict[str, str]

    @classmethod
    def of(cls, record: dict[str, Any]) -> RunDescription:
        """Describe a run by its ``run.json``."""
        return cls(
            name=record["config"]["run"]["name"],
            key=record["key"],
            params={**flatten(record["config"]), "data_hash": record["data"]["train"]["data_hash"]},
            tags=record["versions"],
        )
