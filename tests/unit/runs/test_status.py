import os
from dataclasses import asdict
from pathlib import Path

import pytest

from rm_ray.runs.attempts import Attempt, write_attempts
from rm_ray.runs.history import Record
from rm_ray.runs.manifest import Manifest
from rm_ray.runs.status import list_runs, read_status, status_table
from rm_ray.runs.versions import Version, Versions
from rm_ray.storage import Storage

BEGAN = 1_000_000.0


def make_run(folder: Path, **attempt: object) -> Storage:
    """A run of 200 steps of 64 pairs, started 60 s ago: steps 10 to 50 took 20 s."""
    run_folder = Storage.open(str(folder))
    config = {"batch": {"global_batch_size": 64}, "hub": {"repo_id": None}}
    run_folder.write_json("run.json", {"steps": 200, "config": config})
    about = {"updated": BEGAN + 60, "first_step": 10, "step": 50, "num_workers": 2}
    about["spent"] = {"steps": 15, "data wait": 5}
    under_way = Attempt(number=1, began=BEGAN, **{**about, **attempt})
    write_attempts(run_folder, [under_way])
    os.utime(folder / "attempts.json", (under_way.updated, under_way.updated))
    return run_folder


def test_a_running_run_has_speed_and_time_left(tmp_path: Path):
    status = read_status(make_run(tmp_path / "one"), now=BEGAN + 62)
    assert (status.name, status.state, status.step, status.total_steps) == (
        "one",
        "running",
        50,
        200,
    )
    assert status.pairs_per_second == pytest.approx(2 * 64)
    assert status.seconds_left == pytest.approx(75)
    assert (status.num_attempts, status.num_workers, status.mirror) == (1, 2, "")


def test_a_run_whose_command_is_gone_is_silent(tmp_path: Path):
    status = read_status(make_run(tmp_path / "one"), now=BEGAN + 200)
    assert (status.state, status.seconds_left) == ("silent", None)


@pytest.mark.parametrize(
    ("attempt", "state"),
    [
        ({"first_step": None, "step": 0}, "starting"),
        ({"ending": "lost", "cause": "rank 1 died\nstack"}, "lost"),
        ({"ending": "stopped", "cause": "terminated"}, "stopped"),
    ],
)
def test_the_state_is_that_of_the_latest_attempt(tmp_path: Path, attempt: dict, state: str):
    status = read_status(make_run(tmp_path / "one", **attempt), now=BEGAN + 61)
    assert status.state == state
    assert status.cause == str(attempt.get("cause", "")).partition("\n")[0]


def test_checkpoints_versions_and_unsent_metrics_are_counted(tmp_path: Path):
    run = make_run(tmp_path / "one", mlflow_unsent=7)
    record = run.read_json("run.json")
    record["config"]["hub"]["repo_id"] = "me/model"
    run.write_json("run.json", record)
    manifest = Manifest(step=40, plan_fingerprint="plan", metrics={}, files={})
    run.write_text("checkpoint_00000040_0001/manifest.json", manifest.to_json())
    run.write_text("checkpoint_00000050_0001/state.json", "{}")  # still being copied
    versions = Versions(run_folder=run, repo_id="me/model")
    for step, state in ((20, "published"), (30, "published"), (40, "waiting")):
        versions.write(Version(step=step, tag=f"step-{step}", state=state))
    status = read_status(run, now=BEGAN + 61)
    assert status.checkpoint_step == 40
    assert status.mirror == "2 published, 1 waiting"
    assert status.mlflow_unsent == 7


def test_runs_are_listed_and_other_folders_are_not(tmp_path: Path):
    make_run(tmp_path / "older")
    finished = make_run(tmp_path / "newer", ending="finished", updated=BEGAN + 500, step=200)
    result = {"steps": 200, "pairs_per_second": 99.5, "time": {"goodput": 0.8}}
    finished.write_json("result.json", result)
    (tmp_path / "token_cache").mkdir()
    (tmp_path / "mlflow.db").write_text("")
    runs = list_runs(Storage.open(str(tmp_path)))
    assert [(run.name, run.state) for run in runs] == [("newer", "finished"), ("older", "silent")]
    header, newer, older = status_table(runs, now=BEGAN + 560).splitlines()
    assert header.split()[:4] == ["run", "state", "step", "pairs/s"]
    assert newer.split()[:4] == ["newer", "finished", "200/200", "99.5"]
    assert "1:00 ago" in newer
    assert "0.80" in newer
    assert older.split()[:3] == ["older", "silent", "50/200"]


def test_a_machine_with_a_wrong_clock_changes_nothing(tmp_path: Path):
    run = make_run(tmp_path / "one", updated=BEGAN + 7_200)
    os.utime(tmp_path / "one" / "attempts.json", (BEGAN + 60, BEGAN + 60))
    assert read_status(run, now=BEGAN + 62).state == "running"
    assert read_status(run, now=BEGAN + 200).state == "silent"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("attempts.json", '[{"number": 1, "began": 0, "updated": 0, "unheard": "of"}]'),
        ("attempts.json", '[{"number": 1, "beg'),
        ("result.json", '{"steps": 5}'),
    ],
)
def test_an_unreadable_run_does_not_hide_the_others(tmp_path, file, text):
    make_run(tmp_path / "good")
    make_run(tmp_path / "odd").write_text(file, text)
    runs = {run.name: run for run in list_runs(Storage.open(str(tmp_path)))}
    assert runs["good"].step == 50
    assert runs["odd"].state == "unreadable"
    assert "odd: " in status_table(list(runs.values()))


def test_a_finished_run_counts_its_unsent_metrics(tmp_path: Path):
    run = make_run(tmp_path / "one", ending="finished")
    result = {"steps": 200, "pairs_per_second": 9, "time": {"goodput": 1}, "mlflow_unsent": 500}
    run.write_json("result.json", result)
    assert read_status(run).mlflow_unsent == 500


def test_the_figures_of_named_sets_are_those_saved_last(tmp_path: Path):
    run_folder = make_run(tmp_path / "one")
    metrics = {"eval/rm/accuracy": 0.75, "eval/bench/score": 0.5, "eval/bench/score/chat": 1.0}
    for step, found in ((40, {"eval/rm/accuracy": 0.25}), (45, metrics), (50, {})):
        manifest = Manifest(step=step, plan_fingerprint="p", metrics=found, files={})
        run_folder.write_text(f"checkpoint_{step:08d}_0001/manifest.json", manifest.to_json())
    assert read_status(run_folder, now=BEGAN + 62).held_out == {}
    record = run_folder.read_json("run.json")
    record["config"]["evaluation"] = {"sets": ["bench=a.jsonl"]}
    run_folder.write_json("run.json", record)
    status = read_status(run_folder, now=BEGAN + 62)
    assert status.held_out == {"eval/rm/accuracy": 0.75, "eval/bench/score": 0.5}
    shown = "one: eval/rm/accuracy 0.7500, eval/bench/score 0.5000"
    assert shown in status_table([status], now=BEGAN + 62).splitlines()
    late = Record(step=50, kind="eval", episode=1, hours=0, metrics={"eval/bench/score": 0.75})
    done = {"step": 50, "record": asdict(late)}
    run_folder.write_json("late_evaluations/step-00000050.json", done)
    assert read_status(run_folder, now=BEGAN + 62).held_out == {"eval/bench/score": 0.75}
