import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import pytest
from mlflow_runs import PATIENCE_S, begin

from rm_ray.errors import InputError
from rm_ray.tracking import mlflow_run
from rm_ray.tracking.early_check import EarlyMlflowCheck
from rm_ray.tracking.target import MlflowTarget


def test_a_missing_database_is_left_to_the_run(tmp_path):
    absent = MlflowTarget(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")
    EarlyMlflowCheck(absent).refuse()
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_experiment_is_refused_before_the_run(target):
    run = begin(target)
    EarlyMlflowCheck(target).refuse(PATIENCE_S)
    experiment = run.client.get_experiment_by_name("tests")
    run.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(InputError, match=r"mlflow\.experiment 'tests' is deleted"):
        EarlyMlflowCheck(target).refuse(PATIENCE_S)


def test_an_unreachable_server_does_not_keep_a_run_from_starting():
    away = MlflowTarget(tracking_uri="http://127.0.0.1:9", experiment="tests")
    EarlyMlflowCheck(away).refuse(0.5)


@pytest.mark.parametrize("experiment", ["tests", "another"])
def test_a_database_that_takes_the_run_is_not_asked_through_mlflow(target, monkeypatch, experiment):
    begin(target)
    asked = []
    monkeypatch.setattr(mlflow_run, "ask_mlflow", asked.append)
    EarlyMlflowCheck(replace(target, experiment=experiment)).refuse(PATIENCE_S)
    assert asked == []


def test_a_locked_database_is_left_to_mlflow_at_once(target, monkeypatch):
    begin(target)
    asked, seconds = [], []
    monkeypatch.setattr(mlflow_run, "ask_mlflow", asked.append)
    with closing(sqlite3.connect(target.sqlite_file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(3):  # the quickest says what it waits for, however busy the machine is
            began = time.monotonic()
            EarlyMlflowCheck(target).refuse(PATIENCE_S)
            seconds.append(time.monotonic() - began)
    assert asked == 3 * [target]
    assert min(seconds) < 4  # SQLite's own patience is 5 s


def test_a_folder_in_the_place_of_the_database_is_refused_without_asking_mlflow(
    tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(mlflow_run, "ask_mlflow", asked.append)
    (tmp_path / "mlflow.db").mkdir()
    target = MlflowTarget(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")
    with pytest.raises(InputError, match=r"tracking_uri .*mlflow\.db is a folder, .*move the"):
        EarlyMlflowCheck(target).refuse(PATIENCE_S)
    assert asked == []


@pytest.mark.parametrize("content", [b"", b"not a database, whatever its name says"])
def test_a_file_that_is_no_database_of_mlflow_is_asked_about_by_mlflow(
    tmp_path, monkeypatch, content
):
    file, asked = tmp_path / "mlflow.db", []
    file.write_bytes(content)
    monkeypatch.setattr(mlflow_run, "ask_mlflow", asked.append)
    target = MlflowTarget(tracking_uri=f"sqlite:///{file}", experiment="tests")
    EarlyMlflowCheck(target).refuse(PATIENCE_S)
    assert asked == [target]
    assert file.read_bytes() == content
