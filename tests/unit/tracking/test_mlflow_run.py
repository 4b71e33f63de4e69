import socket
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from rm_ray.tracking.history import Record
from rm_ray.tracking.mlflow_run import MetricShipper, MlflowTarget, open_run


@pytest.fixture
def target(tmp_path: Path) -> MlflowTarget:
    return MlflowTarget(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")


def begin(target: MlflowTarget, key: str = "k") -> str | None:
    return open_run(target, name="a run", key=key, params={"a": 1, "b": None}, tags={"t": "x"})


def records(first: int, last: int) -> list[Record]:
    return [
        Record(step=s, kind="train", episode=s, hours=0.0, timestamp=1_000 + s,
               metrics={"episode": float(s), "train/rm/loss": 1 / s})
        for s in range(first, last + 1)
    ]  # fmt: skip


def steps(target: MlflowTarget, run_id: str) -> list[int]:
    return [p.step for p in target.client().get_metric_history(run_id, "train/rm/loss")]


def test_a_run_is_found_again_by_its_key_and_not_by_its_name(target):
    first = begin(target)
    assert begin(target) == first
    assert begin(target, key="other") != first
    run = target.client().get_run(first)
    assert (run.data.params, run.data.tags["t"]) == ({"a": "1", "b": "None"}, "x")


def test_what_mlflow_has_is_not_sent_again(target):
    run_id = begin(target)
    assert MetricShipper(target, run_id, records(1, 5)).close() == 0
    resumed = MetricShipper(target, run_id, records(1, 3))
    for record in records(4, 8):
        resumed.send(record)
    assert resumed.close() == 0
    assert steps(target, run_id) == list(range(1, 9))


def test_a_server_that_comes_back_gets_every_point_once(target, monkeypatch):
    run_id = begin(target)
    log_batch, failures = mlflow.MlflowClient.log_batch, iter([True, True])

    def flaky(self, *arguments, **options):
        if next(failures, False):
            raise MlflowException("away")
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", flaky)
    assert MetricShipper(target, run_id, records(1, 100)).close() == 0
    assert steps(target, run_id) == list(range(1, 101))


def test_what_is_unsent_is_counted(target, monkeypatch):
    run_id = begin(target)

    def away(*_, **__):
        raise MlflowException("away")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away)
    assert MetricShipper(target, run_id, records(1, 7)).close(patience_s=2.0) == 7


def test_a_table_is_logged_once(target):
    run_id = begin(target)
    for _ in range(2):
        shipper = MetricShipper(target, run_id, [])
        shipper.send_table("eval_samples/step-1.json", [{"pair": 0, "prompt": "Hi"}])
        assert shipper.close() == 0
    table = mlflow.MlflowClient(target.tracking_uri).list_artifacts(run_id, "eval_samples")
    assert [item.path for item in table] == ["eval_samples/step-1.json"]


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_mlflow_that_is_not_there_stops_nothing(scheme):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    if scheme == "postgresql":
        address += "/database"
    assert begin(MlflowTarget(tracking_uri=address, experiment="tests")) is None
