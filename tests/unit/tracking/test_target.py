"""MLflow targets: SQLite files in folders of any name, and commands to copy."""

import shlex
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy

from rm_ray.config.sections.mlflow import MlflowConfig
from rm_ray.storage import Storage
from rm_ray.tracking.target import MlflowTarget


@pytest.mark.parametrize("name", ["runs", "my runs", "what?", "a#b", "100%", "a%20b", "Größe"])
def test_the_database_lies_in_a_storage_of_any_name(tmp_path: Path, name: str):
    storage = Storage.open(str(tmp_path / name))
    (tmp_path / name).mkdir()
    target = MlflowTarget.of(MlflowConfig(), storage)
    engine = sqlalchemy.create_engine(target.tracking_uri)  # as MLflow opens it
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table found (x)"))
    engine.dispose()
    with sqlite3.connect(tmp_path / name / "mlflow.db") as there:
        assert there.execute("select name from sqlite_master").fetchall() == [("found",)]
    assert target.sqlite_file == tmp_path / name / "mlflow.db"
    assert shlex.split(target.view_command)[-1] == target.tracking_uri


def test_a_relative_database_path_starts_at_the_working_directory(tmp_path: Path, monkeypatch):
    (tmp_path / "50%").mkdir()
    monkeypatch.chdir(tmp_path / "50%")
    target = MlflowTarget.of(MlflowConfig(tracking_uri="sqlite:///m.db"), Storage.open("/nowhere"))
    assert target.sqlite_file == tmp_path / "50%" / "m.db"


@pytest.mark.parametrize(
    "uri", ["https://mlflow.example", "sqlite://", "sqlite:///:memory:", "postgresql://host/db"]
)
def test_other_uris_are_unchanged(uri: str):
    target = MlflowTarget.of(MlflowConfig(tracking_uri=uri), Storage.open("/nowhere"))
    assert (target.tracking_uri, target.sqlite_file) == (uri, None)
