"""A run's models in a real MLflow registry (SQLite), by reference."""

from pathlib import Path

import mlflow
import pytest
from made_run import MadeRun, make_run
from mlflow_runs import make_target

from rm_ray.publish.registration import register_models
from rm_ray.runs.versions import Version, Versions

REPO = "someone/rewards"


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    """A finished run of 30 steps in MLflow, with step 20 as its best."""
    made = make_run(tmp_path, last_step=30)
    make_target(Path(made.storage.path))
    record = made.run.read_json("run.json")
    record["config"]["mlflow"]["registered_model"] = "rewards"
    made.run.write_json("run.json", record)
    client = mlflow.MlflowClient(uri_of(made))
    run_id = client.create_run(client.create_experiment("runs")).info.run_id
    best = made.run.join("checkpoint_00000020_0001")
    result = {"steps": 30, "best_checkpoint": best, "mlflow_run_id": run_id}
    made.run.write_json("result.json", result)
    return made


def uri_of(made: MadeRun) -> str:
    return f"sqlite:///{made.storage.join('mlflow.db')}"


def publish(made: MadeRun, step: int) -> None:
    tag = f"step-{step:08d}"
    version = Version(step=step, tag=tag, state="published", commit="c" * 40)
    Versions(run_folder=made.run, repo_id=REPO).write(version)


def test_published_models_are_registered_once_and_refer_to_their_tags(made):
    for step in (20, 30):
        publish(made, step)
    for _ in range(2):
        assert register_models(made.folder, REPO)
    client = mlflow.MlflowClient(uri_of(made))
    assert len(client.search_model_versions("name = 'rewards'")) == 2
    best, last = (client.get_model_version_by_alias("rewards", a) for a in ("best", "last"))
    assert best.source == f"https://huggingface.co/{REPO}/tree/step-00000020"
    assert last.source == f"https://huggingface.co/{REPO}/tree/step-00000030"
    result = made.run.read_json("result.json")
    assert best.run_id == last.run_id == result["mlflow_run_id"]
    assert best.tags["hub.revision"] == "step-00000020"
    assert best.tags["hub.commit"] == "c" * 40


def test_an_unpublished_run_is_registered_by_its_folder(made):
    assert register_models(made.folder, None)
    client = mlflow.MlflowClient(uri_of(made))
    (version,) = client.search_model_versions("name = 'rewards'")
    assert version.source == f"{made.folder}/export"
    assert client.get_model_version_by_alias("rewards", "last").version == version.version
    with pytest.raises(mlflow.exceptions.MlflowException):
        client.get_model_version_by_alias("rewards", "best")  # a checkpoint, not an export


def test_a_later_run_of_the_same_model_takes_the_aliases_over(made, tmp_path):
    register_models(made.folder, None)
    record = made.run.read_json("run.json")
    made.run.write_json("run.json", {**record, "key": "another"})
    register_models(made.folder, None)
    client = mlflow.MlflowClient(uri_of(made))
    assert int(client.get_model_version_by_alias("rewards", "last").version) == 2


def test_a_local_path_is_not_registered_on_a_server(made, caplog):
    record = made.run.read_json("run.json")
    record["config"]["mlflow"]["tracking_uri"] = "http://127.0.0.1:9"
    made.run.write_json("run.json", record)
    assert register_models(made.folder, None)
    assert "MLflow servers refuse local paths" in caplog.text


def test_registration_stays_pending_while_mlflow_is_away(made, caplog):
    publish(made, 30)
    record = made.run.read_json("run.json")
    record["config"]["mlflow"]["tracking_uri"] = "http://127.0.0.1:9"
    made.run.write_json("run.json", record)
    assert not register_models(made.folder, REPO)
    assert "the model is not registered: MLflow at http://127.0.0.1:9" in caplog.text


def test_without_a_name_nothing_is_registered(made):
    record = made.run.read_json("run.json")
    record["config"]["mlflow"]["registered_model"] = None
    made.run.write_json("run.json", record)
    assert register_models(made.folder, None)
    assert mlflow.MlflowClient(uri_of(made)).search_registered_models() == []


def test_a_home_folder_is_expanded_for_mlflows_clients(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert register_models(f"~/{Path(made.folder).relative_to(tmp_path)}", None)
    client = mlflow.MlflowClient(uri_of(made))
    (version,) = client.search_model_versions("name = 'rewards'")
    assert version.source == f"{made.folder}/export"
