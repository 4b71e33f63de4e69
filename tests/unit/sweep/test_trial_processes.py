"""Against a stand-in for ``jobs/train.py`` in a root of its own: a shell-like Python script."""

import os
import time
from pathlib import Path

import pytest
from made_sweep import leave, trials_in

from rm_ray.config.recipe import read_recipe
from rm_ray.importing import ROOT
from rm_ray.sweep import trial_processes
from rm_ray.sweep.record import read_mark
from rm_ray.sweep.trial_processes import TrialProcesses

WAITS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("begun", flush=True)
time.sleep(600)
"""


def make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, **environment: str
) -> TrialProcesses:
    """Processes that run ``script`` for each trial."""
    (tmp_path / "root" / "jobs").mkdir(parents=True)
    (tmp_path / "root" / "jobs" / "train.py").write_text(script)
    monkeypatch.setattr(trial_processes, "ROOT", str(tmp_path / "root"))
    folder, _ = trials_in(tmp_path)
    return TrialProcesses(folder, tmp_path / "scratch", {"PYTHONPATH": ROOT, **environment})


def wait_until_begun(log: Path) -> None:
    deadline = time.monotonic() + 240
    while not (log.exists() and "begun" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_trial_gets_its_recipe_and_the_environment(tmp_path: Path, monkeypatch):
    script = "import os, sys; print(sys.argv[1:], os.environ['RAY_ADDRESS']); sys.exit(1)"
    processes = make(tmp_path, monkeypatch, script, RAY_ADDRESS="here:1")
    folder, (trial, *_) = trials_in(tmp_path)
    processes.start(trial)
    processes.join()
    recipe = tmp_path / "scratch" / f"{trial.name}.yaml"
    log = tmp_path / "scratch" / f"{trial.name}.log"
    assert log.read_text() == f"['--recipe', '{recipe}'] here:1\n"
    assert read_recipe(recipe) == trial.config
    assert read_mark(folder, trial.name) == {
        "ending": "failed", "cause": f"exit status 1; see {log}"
    }  # fmt: skip


def test_the_cause_of_a_failure_is_that_of_its_last_attempt(tmp_path: Path, monkeypatch):
    processes = make(tmp_path, monkeypatch, "raise SystemExit(2)")
    folder, (trial, *_) = trials_in(tmp_path)
    attempt = {"number": 1, "began": 0, "updated": 1, "ending": "refused", "cause": "no data\nmore"}
    folder.write_json(f"{trial.name}/attempts.json", [attempt])
    processes.start(trial)
    processes.join()
    assert (read_mark(folder, trial.name) or {})["cause"].startswith("no data; see ")


def test_a_trial_that_finished_gets_no_mark(tmp_path: Path, monkeypatch):
    processes = make(tmp_path, monkeypatch, "")
    folder, (trial, *_) = trials_in(tmp_path)
    leave(folder, trial, 0.5)
    processes.start(trial)
    processes.join()
    assert read_mark(folder, trial.name) is None


def test_a_trial_that_is_asked_to_stop_gets_no_mark_and_one_stopped_by_others_does(
    tmp_path: Path, monkeypatch
):
    processes = make(tmp_path, monkeypatch, WAITS)
    folder, (first, second, *_) = trials_in(tmp_path)
    for trial in (first, second):
        processes.start(trial)
        processes.start(trial)  # it runs already
        wait_until_begun(tmp_path / "scratch" / f"{trial.name}.log")
    assert processes.is_running(second.name)
    processes.stop(first.name)
    os.kill(processes.pid(second.name), 15)
    processes.join()
    assert not processes.is_running(second.name)
    assert read_mark(folder, first.name) is None
    assert (read_mark(folder, second.name) or {})["ending"] == "interrupted"


def test_processes_that_ended_are_collected_and_others_killed(tmp_path: Path, monkeypatch):
    processes = make(tmp_path, monkeypatch, WAITS)
    folder, (trial, *_) = trials_in(tmp_path)
    processes.start(trial)
    processes.reap()
    assert processes.is_running(trial.name)
    processes.kill()
    deadline = time.monotonic() + 240
    while processes.is_running(trial.name) and time.monotonic() < deadline:
        processes.reap()
    assert (read_mark(folder, trial.name) or {})["ending"] == "failed"
