import mlflow
import pytest
from mlflow_runs import begin

from rm_ray.errors import MlflowAwayError
from rm_ray.tracking.registry import BEST, LAST, MODEL_TAG, RegisteredModel, register


def model(key: str, run_id: str) -> RegisteredModel:
    return RegisteredModel(
        key=key, source=f"/runs/{key}", run_id=run_id, tags={"hub.revision": key}
    )


def test_a_model_is_registered_once_and_its_aliases_move(target):
    uri, run_id = target.tracking_uri, begin(target).run_id
    client = mlflow.MlflowClient(uri)
    client.create_registered_model("rewards")
    client.create_model_version("rewards", source="/runs/foreign", run_id=run_id)
    one, two = model("step-1", run_id), model("step-2", run_id)
    assert register(uri, "rewards", {BEST: one, LAST: one}) == {BEST: 2, LAST: 2}
    assert register(uri, "rewards", {BEST: one, LAST: two}) == {BEST: 2, LAST: 3}
    assert register(uri, "rewards", {BEST: one, LAST: two}) == {BEST: 2, LAST: 3}
    assert len(client.search_model_versions("name = 'rewards'")) == 3
    last = client.get_model_version_by_alias("rewards", LAST)
    assert (last.source, last.run_id) == ("/runs/step-2", run_id)
    assert last.tags == {MODEL_TAG: "step-2", "hub.revision": "step-2"}


def test_an_unreachable_registry_is_named():
    with pytest.raises(MlflowAwayError, match=r"MLflow at http://127\.0\.0\.1:9"):
        register("http://127.0.0.1:9", "rewards", {})
