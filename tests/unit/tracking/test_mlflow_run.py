import json
import socket
from pathlib import Path

import pytest
from mlflow_runs import begin, make_records

from rm_ray.errors import InputError, MlflowAwayError
from rm_ray.runs.history import Record
from rm_ray.tracking.mlflow_run import ask_mlflow
from rm_ray.tracking.target import METRICS_PER_CALL, MlflowTarget


def test_a_run_is_found_again_by_its_key_and_not_by_its_name(target):
    first = begin(target)
    assert begin(target).run_id == first.run_id
    assert begin(target, key="other").run_id != first.run_id
    run = first.client.get_run(first.run_id)
    assert (run.data.params, run.data.tags["t"]) == ({"a": "1", "b": "None"}, "x")


def test_the_steps_that_mlflow_has_are_listed_by_kind(target):
    run = begin(target)
    assert run.logged_steps() == {"train": set(), "eval": set()}
    run.log(make_records(3, 5))
    run.log([Record(step=4, kind="eval", episode=4, hours=0.0, metrics={"eval/rm/loss": 0.5})])
    assert begin(target).logged_steps() == {"train": {3, 4, 5}, "eval": {4}}


def test_a_table_has_its_rows_as_columns_and_is_logged_once(target):
    run, name = begin(target), "eval_samples/step-1.json"
    run.log_table(name, [{"pair": 0, "prompt": "Hi"}, {"pair": 1, "prompt": "Ho"}])
    run.log_table(name, [{"pair": 2, "prompt": "again"}])
    run.log_table("empty.json", [])
    assert [a.path for a in run.client.list_artifacts(run.run_id)] == ["eval_samples"]
    table = json.loads(Path(run.client.download_artifacts(run.run_id, name)).read_text())
    assert table == {"columns": ["pair", "prompt"], "data": [[0, "Hi"], [1, "Ho"]]}


def test_a_finished_run_has_its_documents_and_figures(target, tmp_path):
    figure = tmp_path / "loss.png"
    figure.write_bytes(b"png")
    run = begin(target)
    run.finish({"config.yaml": {"a": 1}, "attempts.json": {"b": [2]}}, [figure])
    paths = {item.path for item in run.client.list_artifacts(run.run_id)}
    assert paths == {"config.yaml", "attempts.json", "plots"}
    assert [item.path for item in run.client.list_artifacts(run.run_id, "plots")] == [
        "plots/loss.png"
    ]
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_stopped_run_is_marked_until_it_resumes(target, status):
    run = begin(target)
    run.end(status)
    assert run.client.get_run(run.run_id).info.status == status
    assert run.client.get_run(begin(target).run_id).info.status == "RUNNING"


def test_the_first_run_creates_the_experiment(target):
    assert ask_mlflow(target, registry=True) == "experiment 'tests' will be created"
    begin(target)
    assert ask_mlflow(target) == "experiment 'tests' exists"


def test_a_deleted_experiment_is_refused_with_the_command_that_restores_it(target):
    run = begin(target)
    experiment = run.client.get_experiment_by_name("tests")
    run.client.delete_experiment(experiment.experiment_id)
    message = rf"mlflow.experiment 'tests' is deleted .* restore --experiment-id {1}"
    with pytest.raises(InputError, match=message):
        begin(target)
    with pytest.raises(InputError, match=message):
        ask_mlflow(target)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_an_unreachable_mlflow_is_named(scheme):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    if scheme == "postgresql":
        address += "/database"
    away = MlflowTarget(tracking_uri=address, experiment="tests")
    with pytest.raises(MlflowAwayError, match=f"MLflow at {address} does not answer"):
        begin(away)


def evaluation(step: int, *sets: str, many: int = 1) -> Record:
    metrics = {f"eval/{name}/accuracy{i}": 0.5 for name in sets for i in range(many)}
    return Record(step=step, kind="eval", episode=step, hours=0.0, metrics=metrics)


def test_an_evaluation_counts_as_logged_whichever_sets_it_was_made_on(target):
    run = begin(target)
    run.log([evaluation(4, "chat"), evaluation(8, "rm", "chat"), evaluation(12, "code")])
    assert begin(target).logged_steps() == {"train": set(), "eval": {4, 8, 12}}


def test_more_metrics_than_mlflow_takes_at_once_are_divided(target):
    run = begin(target)
    run.log([evaluation(4, "chat", many=METRICS_PER_CALL + 200)])
    assert len(run.client.get_run(run.run_id).data.metrics) == METRICS_PER_CALL + 200
