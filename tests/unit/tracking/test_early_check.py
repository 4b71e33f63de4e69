import pytest
from mlflow_runs import PATIENCE_S, begin

from rm_ray.errors import InputError
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
