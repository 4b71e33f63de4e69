import socket
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from rm_ray.errors import InputError
from rm_ray.runs.history import Record
from rm_ray.tracking import sender as sender_module
from rm_ray.tracking.mlflow_run import MlflowRun, ask_mlflow
from rm_ray.tracking.sender import EarlyMlflowCheck, MetricSender
from rm_ray.tracking.target import MlflowAwayError, MlflowTarget, RunDescription

PATIENCE_S = 120.0
"""How long MLflow may take to make its tables on a busy machine."""


@pytest.fixture
def target(tmp_path: Path) -> MlflowTarget:
    return MlflowTarget(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tests")


def begin(target: MlflowTarget, key: str = "k") -> MlflowRun:
    description = RunDescription(name="a run", key=key, params={"a": 1, "b": None}, tags={"t": "x"})
    return MlflowRun.open(target, description)


def ship(target: MlflowTarget, records: list[Record]) -> MetricSender:
    sender = MetricSender(lambda: begin(target))
    for record in records:
        sender.send(record)
    return sender


def records(first: int, last: int, *, later: int = 0) -> list[Record]:
    return [
        Record(step=s, kind="train", episode=s, hours=0.0, timestamp=1_000 + s + later,
               metrics={"episode": float(s), "train/rm/loss": 1 / s})
        for s in range(first, last + 1)
    ]  # fmt: skip


def steps(target: MlflowTarget) -> list[int]:
    run = begin(target)
    return [p.step for p in run.client.get_metric_history(run.run_id, "train/rm/loss")]


def test_a_run_is_found_again_by_its_key_and_not_by_its_name(target):
    first = begin(target)
    assert begin(target).run_id == first.run_id
    assert begin(target, key="other").run_id != first.run_id
    run = first.client.get_run(first.run_id)
    assert (run.data.params, run.data.tags["t"]) == ({"a": "1", "b": "None"}, "x")


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_ended_is_marked_until_it_goes_on(target, status):
    sender = ship(target, records(1, 2))
    deadline = time.monotonic() + PATIENCE_S
    while sender.unsent and time.monotonic() < deadline:
        time.sleep(0.1)  # the end itself waits for a few seconds only
    sender.end(status)
    assert sender.mlflow_run is not None
    found = sender.mlflow_run.client.get_run(sender.mlflow_run.run_id)
    assert found.info.status == status
    assert sender.mlflow_run.client.get_run(begin(target).run_id).info.status == "RUNNING"


def test_what_mlflow_has_is_not_sent_again(target):
    assert ship(target, records(1, 5)).close(PATIENCE_S) == 0
    # A step that is trained again has another time, so MLflow would keep it as another point.
    again = [*records(1, 3, later=50), *records(4, 8, later=50), *records(2, 6, later=90)]
    resumed = ship(target, again)
    assert resumed.close(PATIENCE_S) == 0
    assert resumed.mlflow_run is not None
    assert resumed.mlflow_run.run_id == begin(target).run_id
    assert steps(target) == list(range(1, 9))


def test_a_server_that_comes_back_gets_every_point_once(target, monkeypatch):
    log_batch, failures = mlflow.MlflowClient.log_batch, iter([True, True])

    def flaky(self, *arguments, **options):
        if options.get("metrics") and next(failures, False):
            raise MlflowException("away")
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", flaky)
    assert ship(target, records(1, 100)).close(PATIENCE_S) == 0
    assert steps(target) == list(range(1, 101))


def test_what_is_unsent_is_counted(target, monkeypatch):
    def away(*_, **options):
        if options.get("metrics"):
            raise MlflowException("away")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away)
    assert ship(target, records(1, 7)).close(patience_s=2.0) == 7


def test_a_server_that_is_away_at_the_beginning_is_asked_again(target):
    answers = iter([False, False])

    def opening() -> MlflowRun:
        if next(answers, True):
            return begin(target)
        raise MlflowAwayError("away")

    sender = MetricSender(opening)
    for record in records(1, 3):
        sender.send(record)
    assert sender.close(PATIENCE_S) == 0
    assert steps(target) == [1, 2, 3]


def test_nothing_is_opened_where_nothing_is_sent(target):
    def never() -> MlflowRun:
        raise AssertionError

    sender = MetricSender(never)
    assert sender.close(PATIENCE_S) == 0
    assert sender.mlflow_run is None


def test_a_table_is_logged_once(target):
    for _ in range(2):
        sender = MetricSender(lambda: begin(target))
        sender.send_table("eval_samples/step-1.json", [{"pair": 0, "prompt": "Hi"}])
        assert sender.close(PATIENCE_S) == 0
    run = begin(target)
    found = run.client.list_artifacts(run.run_id, "eval_samples")
    assert [item.path for item in found] == ["eval_samples/step-1.json"]


def test_a_table_that_mlflow_does_not_take_stays_counted(target, monkeypatch):
    def fails(*_: object) -> None:
        raise MlflowAwayError("the store of files is full")

    monkeypatch.setattr(MlflowRun, "log_table", fails)
    monkeypatch.setattr(sender_module, "TRIES_OF_A_TABLE", 1)
    sender = ship(target, records(1, 2))
    sender.send_table("eval_samples/step-1.json", [{"pair": 0}])
    assert sender.close(PATIENCE_S) == 1
    assert begin(target).logged_steps()["train"] == {1, 2}


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_mlflow_that_is_not_there_stops_nothing(scheme):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    if scheme == "postgresql":
        address += "/database"
    target = MlflowTarget(tracking_uri=address, experiment="tests")
    with pytest.raises(MlflowAwayError, match="MLflow at"):
        begin(target)
    assert ship(target, records(1, 2)).close(patience_s=1.0) == 2


def test_a_deleted_experiment_is_refused_before_a_run_and_ends_the_shipping(target, caplog):
    EarlyMlflowCheck(target).refuse()  # there is no database yet, and none is made
    assert target.sqlite_file is not None
    assert not target.sqlite_file.exists()
    run = begin(target)
    EarlyMlflowCheck(target).refuse(PATIENCE_S)
    experiment = run.client.get_experiment_by_name("tests")
    run.client.delete_experiment(experiment.experiment_id)
    told = rf"mlflow.experiment 'tests' is deleted .* restore --experiment-id {1}"
    with pytest.raises(InputError, match=told):
        EarlyMlflowCheck(target).refuse(PATIENCE_S)
    with pytest.raises(InputError, match="is deleted"):
        ask_mlflow(target)
    sender = ship(target, records(1, 3))
    assert sender.close(PATIENCE_S) == 3
    assert "training goes on, and keeps its metrics" in caplog.text
    run.client.restore_experiment(experiment.experiment_id)
    assert ship(target, records(1, 3)).close(PATIENCE_S) == 0
    assert steps(target) == [1, 2, 3]


def test_a_server_that_is_away_keeps_no_run_from_beginning():
    away = MlflowTarget(tracking_uri="http://127.0.0.1:9", experiment="tests")
    EarlyMlflowCheck(away).refuse(0.5)
