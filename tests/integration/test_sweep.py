"""A sweep on a real Ray: killed in its midst, resumed, ranked; its models judge together."""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import yaml
from made_sweep import make_sweep, trials_in
from runs import first_checkpoint, small_run

from rm_ray.commands.evaluate import main as evaluate
from rm_ray.commands.sweep import main as sweep
from rm_ray.commands.train import main as train
from rm_ray.config.recipe import read_recipe
from rm_ray.sweep import trial_processes
from rm_ray.sweep.outcomes import read_outcomes
from rm_ray.sweep.scheduling import schedule
from rm_ray.sweep.trial_processes import TrialProcesses

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 900.0
"""How long anything may take on a busy machine before it is held never to come."""
RATES = [1e-3, 1e-7]


def write_inputs(folder: Path, num_seeds: int) -> tuple[Path, list[str]]:
    """Write a recipe of one worker and a sweep; return the recipe and the command's options."""
    settings = small_run(folder / "storage", "rates", zero_stage=0)
    settings["cluster"]["num_workers"] = 1
    settings["evaluation"]["every_steps"] = 5
    settings["checkpoint"] = {"every_steps": 5}
    found = {
        "settings": {"optimizer.learning_rate": {"grid": RATES}},
        "seeds": num_seeds,
        "max_parallel": 1 if num_seeds == 1 else 2,
    }
    for name, content in (("recipe", settings), ("sweep", found)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    recipe = folder / "recipe.yaml"
    return recipe, ["--recipe", str(recipe), "--sweep", str(folder / "sweep.yaml")]


def kill_in_the_last_trial(options: list[str], folder: Path, last: str, log: Path) -> None:
    """Start the sweep, and kill it once its last trial has a checkpoint."""
    with log.open("w") as output:
        command = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "sweep.py"), *options],
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + PATIENCE_S
    while first_checkpoint(folder / last) is None:
        assert command.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    children = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    command.wait()
    assert not psutil.wait_procs(children, timeout=60)[1], "its trials go with it"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.timeout(3000)
@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_sweep_that_is_killed_goes_on_and_ranks_what_it_trained(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_seeds: int
) -> None:
    recipe, options = write_inputs(tmp_path, num_seeds)
    folder = tmp_path / "storage" / "rates"
    names = [f"rates-{i:03d}-seed{seed}" for seed in range(1, num_seeds + 1) for i in (0, 1)]
    kill_in_the_last_trial(options, folder, names[-1], tmp_path / "first.log")
    finished = {name: (folder / name / "result.json") for name in names}
    before = {name: path.stat().st_mtime_ns for name, path in finished.items() if path.exists()}
    assert names[0] in before
    assert names[-1] not in before

    assert sweep(options) == 0
    after = {name: path.stat().st_mtime_ns for name, path in finished.items()}
    assert {name: after[name] for name in before} == before, "finished trials are not repeated"
    log = (folder / "trials" / f"{names[-1]}.log").read_text()
    assert "resumed from the checkpoint of step" in log
    said = capsys.readouterr().out
    assert "| optimizer.learning_rate | eval/rm/loss |" in said

    losses = [read_json(path)["metrics"]["eval/rm/loss"] for path in finished.values()]
    of_rate = {rate: losses[place::2] for place, rate in enumerate(RATES)}
    order = sorted(RATES, key=lambda rate: statistics.mean(of_rate[rate]))
    settings = read_json(folder / "ranking.json")["settings"]
    assert [setting["settings"]["optimizer.learning_rate"] for setting in settings] == order
    for rate, setting in zip(order, settings, strict=True):
        assert [trial["value"] for trial in setting["trials"]] == of_rate[rate]
        assert [trial["step"] for trial in setting["trials"]] == [20] * num_seeds
    caches = {
        line for name in names
        for line in (folder / "trials" / f"{name}.log").read_text().splitlines()
        if line.startswith("token cache")
    }  # fmt: skip
    assert caches
    assert all("reused" in line for line in caches), "the sweep built them before"

    winner = read_recipe(folder / "winner.yaml")
    given = read_recipe(recipe)
    assert winner == replace(
        given,
        run=replace(given.run, name="rates-winner"),
        optimizer=replace(given.optimizer, learning_rate=order[0]),
    )
    assert train(["--recipe", str(folder / "winner.yaml"), "--dry_run"]) == 0
    check_mlflow(folder, names)
    check_ensemble(folder, names[:2], tmp_path / "both")


def check_mlflow(folder: Path, names: list[str]) -> None:
    """The sweep's run has every trial's under it."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'tests'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"rates", *names}
    parent = runs["rates"].info
    assert parent.status == "FINISHED"
    parents = {runs[name].data.tags["mlflow.parentRunId"] for name in names}
    assert parents == {parent.run_id}


def check_ensemble(folder: Path, names: list[str], output: Path) -> None:
    """Two trials' models judge together, and each as it does alone."""
    models = [str(folder / name / "export") for name in names]
    data = ["--data", "builtin:test=41", "--seed", "1", "--output", str(output)]
    assert evaluate(["--model", *models, *data]) == 0
    report = read_json(output / "report.json")
    found = [one["accuracy"] for one in report["ensemble"]["models"]]
    alone = [read_json(folder / n / "result.json")["metrics"]["eval/rm/accuracy"] for n in names]
    assert found == pytest.approx(alone)
    assert report["ensemble"]["mean"]["accuracy"] == report["overall"]["accuracy"]
    assert sum(part["pairs"] for part in report["ensemble"]["by_spread"]) == 41
    row = json.loads(next((output / "rows").iterdir()).read_text().splitlines()[0])
    assert {"chosen_reward_spread", "rejected_reward_spread"} <= row.keys()


STAND_IN = """
import json, pathlib, signal, sys, time
import yaml
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
config = yaml.safe_load(open(sys.argv[2]))
run = pathlib.Path(config["run"]["storage_path"]) / config["run"]["name"]
(run / "evaluations").mkdir(parents=True)
(run / "run.json").write_text('{"steps": 20}')
loss = 0.5 + 100 * config["optimizer"]["learning_rate"]
for step in (5, 10, 15, 20):
    report = {"step": step, "metrics": {"eval/rm/loss": loss / step}}
    draft = run / "draft"
    draft.write_text(json.dumps(report))
    draft.rename(run / "evaluations" / f"step-{step:08d}.json")
    time.sleep(4 if step == 5 else 0.1)  # to be stopped in
(run / "result.json").write_text("{}")
"""
"""Instead of ``jobs/train.py``: what a run leaves, in seconds."""


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_asha_stops_the_worse_trials_and_judges_the_same_when_resumed(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root" / "jobs").mkdir(parents=True)
    (tmp_path / "root" / "jobs" / "train.py").write_text(STAND_IN)
    monkeypatch.setattr(trial_processes, "ROOT", str(tmp_path / "root"))
    given = make_sweep(asha={"grace_steps": 5, "reduction_factor": 2})
    folder, trials = trials_in(tmp_path)
    logs = tmp_path / "logs"
    first = ["finished", "finished", "stopped early", "finished"]
    redone = ["stopped early", *first[1:]]  # it is judged by all that are over, not the first
    for left, states in (
        (trials, first),
        (trials[3:], first),
        ([], first),
        (trials[:1], redone),
        ([], redone),
    ):
        for trial in left:  # as if the command had been killed before these
            for path in (folder.join(trial.name), folder.join(f"trials/{trial.name}.json")):
                shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
        processes = TrialProcesses(folder, logs, {"PYTHONPATH": str(ROOT)})
        schedule(trials, given, folder, processes, parallel=1)
        processes.join()
        outcomes = read_outcomes(folder, trials, given.metric)
        assert [one.state for one in outcomes] == states
        steps = {"finished": 20, "stopped early": 5}
        assert [one.step for one in outcomes] == [steps[state] for state in states]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_that_is_asked_to_stop_saves_its_trials_and_says_so(
    cluster: None, tmp_path: Path
) -> None:
    _, options = write_inputs(tmp_path, 1)
    folder = tmp_path / "storage" / "rates" / "rates-000-seed1"
    log = tmp_path / "first.log"
    with log.open("w") as output:
        command = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "sweep.py"), *options],
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + PATIENCE_S
    while not (folder / "evaluations").exists():
        assert command.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE_S) == 143, log.read_text()
    assert "terminated; rerun the same command to resume" in log.read_text()
    assert first_checkpoint(folder) is not None
