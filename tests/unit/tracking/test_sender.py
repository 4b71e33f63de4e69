import threading
import time
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow_runs import PATIENCE_S, begin, logged_losses, make_records

from rm_ray.errors import InputError, MlflowAwayError
from rm_ray.runs.history import Record
from rm_ray.tracking import sender as sender_module
from rm_ray.tracking.mlflow_run import MlflowRun
from rm_ray.tracking.sender import MetricSender, mlflow_opener
from rm_ray.tracking.target import MlflowTarget, RunDescription


def send(target: MlflowTarget, records: list[Record]) -> MetricSender:
    sender = MetricSender(lambda: begin(target))
    for record in records:
        sender.send(record)
    return sender


def test_the_opener_opens_the_described_run(target):
    description = RunDescription(name="mine", key="key", params={}, tags={})
    open_run = mlflow_opener(target, description)
    assert open_run().run_id == begin(target, key="key").run_id


def test_records_that_mlflow_has_are_not_sent_again(target):
    assert send(target, make_records(1, 5)).close(PATIENCE_S) == 0
    # A repeated step has another timestamp, so MLflow would keep it as a second point.
    again = [
        *make_records(1, 3, later=50), *make_records(4, 8, later=50), *make_records(2, 6, later=90)
    ]  # fmt: skip
    resumed = send(target, again)
    assert resumed.close(PATIENCE_S) == 0
    assert resumed.mlflow_run is not None
    assert resumed.mlflow_run.run_id == begin(target).run_id
    assert logged_losses(target) == list(range(1, 9))


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_the_end_sets_the_status_of_the_run(target, status):
    sender = send(target, make_records(1, 2))
    deadline = time.monotonic() + PATIENCE_S
    while sender.unsent and time.monotonic() < deadline:
        time.sleep(0.1)  # end() itself waits only a few seconds
    sender.end(status)
    assert sender.mlflow_run is not None
    found = sender.mlflow_run.client.get_run(sender.mlflow_run.run_id)
    assert found.info.status == status


def test_a_server_that_comes_back_gets_every_point_once(target, monkeypatch):
    log_batch, failures = mlflow.MlflowClient.log_batch, iter([True, True])

    def flaky(self, *arguments, **options):
        if options.get("metrics") and next(failures, False):
            raise MlflowException("away")
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", flaky)
    assert send(target, make_records(1, 100)).close(PATIENCE_S) == 0
    assert logged_losses(target) == list(range(1, 101))


def test_unsent_items_are_counted(target, monkeypatch):
    def away(*_, **options):
        if options.get("metrics"):
            raise MlflowException("away")

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", away)
    assert send(target, make_records(1, 7)).close(patience_s=2.0) == 7


def test_opening_the_run_is_retried_until_the_server_answers(target):
    answers = iter([False, False])

    def opening() -> MlflowRun:
        if next(answers, True):
            return begin(target)
        raise MlflowAwayError("away")

    sender = MetricSender(opening)
    for record in make_records(1, 3):
        sender.send(record)
    assert sender.close(PATIENCE_S) == 0
    assert logged_losses(target) == [1, 2, 3]


def test_close_gives_up_on_an_unreachable_server():
    away = MlflowTarget(tracking_uri="http://127.0.0.1:9", experiment="tests")
    assert send(away, make_records(1, 2)).close(patience_s=1.0) == 2


@pytest.mark.parametrize("calls_before", [0, 1])
def test_a_sender_that_gave_up_begins_no_further_call(caplog, monkeypatch, calls_before):
    called, gathers = threading.Semaphore(0), threading.Event()
    monkeypatch.setattr(
        sender_module, "time", SimpleNamespace(sleep=lambda _: gathers.wait(PATIENCE_S))
    )

    def away() -> MlflowRun:
        called.release()
        raise MlflowAwayError("away")

    sender = MetricSender(away)
    sender.send(make_records(1, 1)[0])
    for _ in range(calls_before):
        gathers.set()
        assert called.acquire(timeout=PATIENCE_S)
    assert sender.close(patience_s=0) == 1
    gathers.set()
    sender._thread.join(PATIENCE_S)
    assert not sender._thread.is_alive()
    assert not called.acquire(blocking=False)
    assert caplog.text.count("retrying") <= calls_before


def test_nothing_is_opened_if_nothing_is_sent():
    def never() -> MlflowRun:
        raise AssertionError

    sender = MetricSender(never)
    assert sender.close(PATIENCE_S) == 0
    assert sender.mlflow_run is None


def test_a_refusal_stops_the_sender_and_is_reported_once(target, caplog):
    def refused() -> MlflowRun:
        raise InputError("the experiment is deleted")

    sender = MetricSender(refused)
    for record in make_records(1, 3):
        sender.send(record)
    assert sender.close(PATIENCE_S) == 3
    assert str(sender.refusal) == "the experiment is deleted"
    assert caplog.text.count("training continues, and keeps its metrics") == 1
    assert send(target, make_records(1, 3)).close(PATIENCE_S) == 0


def test_a_table_is_logged_once(target):
    for _ in range(2):
        sender = MetricSender(lambda: begin(target))
        sender.send_table("eval_samples/step-1.json", [{"pair": 0, "prompt": "Hi"}])
        assert sender.close(PATIENCE_S) == 0
    run = begin(target)
    found = run.client.list_artifacts(run.run_id, "eval_samples")
    assert [item.path for item in found] == ["eval_samples/step-1.json"]


def test_a_table_that_mlflow_rejects_stays_counted(target, monkeypatch):
    def fails(*_: object) -> None:
        raise MlflowAwayError("the file store is full")

    monkeypatch.setattr(MlflowRun, "log_table", fails)
    monkeypatch.setattr(sender_module, "TRIES_OF_A_TABLE", 1)
    sender = send(target, make_records(1, 2))
    sender.send_table("eval_samples/step-1.json", [{"pair": 0}])
    assert sender.close(PATIENCE_S) == 1
    assert begin(target).logged_steps()["train"] == {1, 2}


def test_records_of_many_metrics_are_sent_in_several_calls(target, monkeypatch):
    sizes, log_batch = [], mlflow.MlflowClient.log_batch

    def counting(self, *arguments, **options):
        if options.get("metrics"):
            sizes.append(len(options["metrics"]))
        return log_batch(self, *arguments, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counting)
    records = [
        Record(step=step, kind="eval", episode=step, hours=0.0,
               metrics={f"eval/chat/accuracy_on/{i}": 0.5 for i in range(300)})
        for step in range(1, 9)
    ]  # fmt: skip
    assert send(target, records).close(PATIENCE_S) == 0
    assert sizes == [900, 900, 600]
    assert begin(target).logged_steps()["eval"] == set(range(1, 9))
