"""The MLflow server and experiment of a run, and its description there."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rm_ray.config.fields import flatten
from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.storage import Storage

SQLITE = "sqlite:///"
"""Prefix of an SQLite file's URI, followed by its path, as in ``sqlite:////data/x.db``."""

METRICS_PER_CALL = 1_000
"""Most metrics that MLflow accepts in one call."""


@dataclass(frozen=True, kw_only=True)
class MlflowTarget:
    """An MLflow server or database, and an experiment in it."""

    tracking_uri: str
    experiment: str

    @classmethod
    def of(cls, config: MlflowConfig, storage: Storage) -> MlflowTarget:
        """Return the config's target; by default an SQLite file in the storage."""
        uri = config.tracking_uri or SQLITE + _quote(storage.join("mlflow.db"))
        return cls(tracking_uri=_from_here(uri), experiment=config.experiment)

    @property
    def sqlite_file(self) -> Path | None:
        """The SQLite file; None if the target is something else."""
        path = self.tracking_uri.removeprefix(SQLITE).partition("?")[0]
        is_file = self.tracking_uri.startswith(SQLITE) and path.startswith("/")
        return Path(unquote(path)) if is_file else None

    @property
    def view_command(self) -> str:
        """The server's address, or a command that shows the runs in a browser."""
        if self.tracking_uri.startswith("http"):
            return self.tracking_uri
        words = (sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.tracking_uri)
        return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.join(words)}"


def _quote(path: str) -> str:
    """Escape the characters of a path that are special in a URI."""
    return path.replace("%", "%25").replace("?", "%3F")


def _from_here(uri: str) -> str:
    """Return an SQLite URI with an absolute path; other URIs are unchanged."""
    path = uri.removeprefix(SQLITE)
    if not uri.startswith(SQLITE) or path.startswith(("/", ":", "file:")) or not path:
        return uri
    return f"{SQLITE}{_quote(str(Path.cwd()))}/{path}"


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """A run's name, parameters and tags in MLflow; its key finds it again."""

    name: str
    key: str
    params: dict[str, Any]
    tags: dict[str, str]

    @classmethod
    def of(cls, record: dict[str, Any]) -> RunDescription:
        """Describe a run from its ``run.json``."""
        return cls(
            name=record["config"]["run"]["name"],
            key=record["key"],
            params={**flatten(record["config"]), "data_hash": record["data"]["train"]["data_hash"]},
            tags=record["versions"],
        )
