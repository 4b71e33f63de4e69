"""Where a run's metrics go, and what MLflow is told of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MlflowTarget:
    """An MLflow server or database, and an experiment in it."""

    tracking_uri: str
    experiment: str

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
