from pathlib import Path

import mlflow
import pytest
from made_run import MadeRun, make_run
from mlflow_runs import PATIENCE_S, make_target

from rm_ray.errors import InputError, TrainingError
from rm_ray.runs.history import Record
from rm_ray.runs.late_evaluations import LateEvaluation, LateEvaluations
from rm_ray.tracking.backfill import backfill, read_history


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    made = make_run(tmp_path)
    made.save(10)
    made.save(20)
    return made


def steps(made: MadeRun) -> list[int]:
    return [record.step for record in read_history(made.run).records]


def test_an_unfinished_run_has_the_history_of_its_newest_checkpoint(made):
    assert steps(made) == [10, 20]


def test_a_partially_copied_checkpoint_has_no_history(made):
    newest = Path(made.folder) / "checkpoint_00000020_0001"
    history = newest / "history.jsonl"
    history.write_text(history.read_text().splitlines(keepends=True)[0])
    assert steps(made) == [10]
    (newest / "manifest.json").unlink()
    assert steps(made) == [10]


def test_a_run_without_an_intact_checkpoint_has_no_history_yet(tmp_path):
    with pytest.raises(InputError, match="no metrics yet"):
        read_history(make_run(tmp_path).run)


def test_a_finished_run_is_backfilled_once(made, caplog):
    caplog.set_level("INFO", "rm_ray")
    make_target(Path(made.storage.path))
    made.finish()
    result = made.run.read_json("result.json")
    result |= {"attempts": [{"attempt": 1}], "time": {"goodput": 1.0}, "mlflow_unsent": 7}
    made.run.write_json("result.json", result)
    made.run.write_json("samples/step-000020.json", [{"pair": 0, "prompt": "Why?"}])
    made.run.write_text("plots/loss.png", "png")
    run_id = backfill(made.folder, None, patience_s=PATIENCE_S)
    assert backfill(made.folder, None, patience_s=PATIENCE_S) == run_id
    client = mlflow.MlflowClient(f"sqlite:///{made.storage.join('mlflow.db')}")
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("made", "FINISHED")
    points = client.get_metric_history(run_id, "train/rm/accuracy")
    assert [(point.step, point.value) for point in points] == [(10, 0.75), (20, 0.75)]
    found = {item.path for item in client.list_artifacts(run_id)}
    assert found == {"attempts.json", "config.yaml", "eval_samples", "plots"}
    result = made.run.read_json("result.json")
    assert (result["mlflow_run_id"], result["mlflow_unsent"]) == (run_id, 0)
    assert caplog.messages[-1].startswith("MLflow has all 2 records of run 'made': sqlite:///")


def test_an_unfinished_run_is_backfilled_to_another_mlflow_and_keeps_its_own_record(made, target):
    run_id = backfill(made.folder, target.tracking_uri, patience_s=PATIENCE_S)
    client = mlflow.MlflowClient(target.tracking_uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert made.run.read_json("result.json") is None


def test_an_unreachable_mlflow_leaves_the_backfill_to_a_later_command(made):
    with pytest.raises(
        TrainingError, match=r"http://127\.0\.0\.1:9 did not accept 2 items in time"
    ):
        backfill(made.folder, "http://127.0.0.1:9", patience_s=0.1)


def test_a_run_of_another_format_is_backfilled_too(made, target):
    record = made.run.read_json("run.json")
    made.run.write_json("run.json", {k: v for k, v in record.items() if k != "format"})
    assert backfill(made.folder, target.tracking_uri, patience_s=PATIENCE_S)


def test_evaluations_beside_training_stand_after_their_steps(made: MadeRun):
    late = Record(step=10, kind="eval", episode=80, hours=0.1, metrics={"eval/rm/loss": 0.5})
    LateEvaluations(run_folder=made.run, config=made.config, last_step=40).write(
        LateEvaluation(step=10, record=late)
    )
    records = read_history(made.run).records
    assert [(r.step, r.kind) for r in records] == [(10, "train"), (10, "eval"), (20, "train")]
    assert records[1] == late
