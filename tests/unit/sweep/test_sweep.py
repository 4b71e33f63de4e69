import math
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from made_sweep import METRIC, leave, make_config, make_sweep

from rm_ray.cluster import ray_cluster
from rm_ray.config.recipe import parse_config, read_recipe
from rm_ray.config.sections.cluster import ClusterConfig
from rm_ray.config.train_config import TrainConfig
from rm_ray.errors import InputError
from rm_ray.sweep import sweep as module
from rm_ray.sweep.outcomes import read_outcomes
from rm_ray.sweep.ranking import rank
from rm_ray.sweep.record import mark
from rm_ray.sweep.sweep import Sweep, SweepResult, count_parallel, prepare, share_machine
from rm_ray.sweep.trials import make_trials
from rm_ray.tracking.parent_run import ParentRun


def open_sweep(storage: Path) -> Sweep:
    return Sweep.open(make_config(storage), make_sweep(), "sweep.yaml")


def test_a_sweep_whose_trials_are_over_is_ranked_without_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ParentRun, "open", lambda _: None)
    logged = []
    monkeypatch.setattr(ParentRun, "finish", lambda *given: logged.append(given[1:]))
    sweep = open_sweep(tmp_path)
    for trial, loss in zip(sweep.trials, (0.6, 0.5, 0.6, 0.4), strict=True):
        leave(sweep.folder, trial, 0.7, loss)
    result = sweep.run()
    assert (result.stopped, result.failed) == (None, [])
    assert result.winner is not None
    assert result.winner.settings == {"optimizer.learning_rate": 1e-4}
    folder = tmp_path / "lr"
    assert (folder / "sweep.json").exists()
    assert "| 0.0001" in (folder / "ranking.md").read_text().splitlines()[2]
    assert sorted(path.name for path in (folder / "plots").iterdir()) == [
        "learning_curves.png", "settings.png",
    ]  # fmt: skip
    config = make_config(tmp_path)
    assert read_recipe(folder / "winner.yaml") == replace(
        config,
        run=replace(config.run, name="lr-winner"),
        optimizer=replace(config.optimizer, learning_rate=1e-4),
    )
    ((metrics, documents, figures),) = logged
    assert metrics == {f"best/{METRIC}": pytest.approx(0.45)}
    assert documents.keys() == {"ranking.json", "winner.yaml"}
    assert len(figures) == 2


def test_failed_trials_are_listed_and_tried_again_by_the_next_command(tmp_path: Path):
    sweep = open_sweep(tmp_path)
    mark(sweep.folder, sweep.trials[0].name, "failed", "no memory")
    mark(sweep.folder, sweep.trials[1].name, "stopped early", "by ASHA")
    states = [one.state for one in open_sweep(tmp_path)._outcomes()]
    assert states == ["waiting", "stopped early", "waiting", "waiting"]


def test_a_sweep_without_a_value_has_no_winner(tmp_path: Path):
    sweep = open_sweep(tmp_path)
    assert SweepResult(ranked=[], folder=sweep.folder).winner is None
    for trial in sweep.trials:
        leave(sweep.folder, trial, math.nan)
    ranked = rank(read_outcomes(sweep.folder, sweep.trials, METRIC), METRIC)
    assert [setting.mean for setting in ranked] == [None, None]
    assert SweepResult(ranked=ranked, folder=sweep.folder).winner is None


def test_a_setting_with_trials_that_are_not_over_is_no_winner(tmp_path: Path):
    sweep = open_sweep(tmp_path)
    for trial in sweep.trials:
        leave(sweep.folder, trial, 0.1, finished=False)
    result = SweepResult(ranked=rank(sweep._outcomes(), METRIC), folder=sweep.folder)
    assert (result.winner, len(result.failed)) == (None, 4)
    for trial in sweep.trials[::2]:
        mark(sweep.folder, trial.name, "stopped early", "by ASHA")
    result = SweepResult(ranked=rank(sweep._outcomes(), METRIC), folder=sweep.folder)
    assert result.winner is not None
    assert result.winner.settings == {"optimizer.learning_rate": 1e-3}


def dry_runs(monkeypatch: pytest.MonkeyPatch, steps: int = 20) -> list[TrainConfig]:
    """Let preparations find this many steps, and nothing that gives the best of K."""
    prepared = []

    def dry_run(config: TrainConfig) -> dict[str, int]:
        prepared.append(config)
        if (metric := config.checkpoint.keep_best_by) == "eval/rm/best_of_k":
            raise InputError(f"checkpoint.keep_best_by is '{metric}', which the data never gives")
        return {"steps": steps}

    monkeypatch.setattr(module, "dry_run", dry_run)
    return prepared


def test_each_preparation_is_made_once_with_checkpoints_ranked_by_the_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared = dry_runs(monkeypatch)
    rates = {"optimizer.learning_rate": {"grid": [1e-3, 1e-4]}}
    settings = rates | {"batch.global_batch_size": {"grid": [4, 8]}}
    given = make_sweep(settings=settings, metric="eval/rm/accuracy")
    trials = make_trials(make_config(tmp_path), given, "sweep.yaml")
    prepare(trials, given, "sweep.yaml")
    found = [(one.run.seed, one.batch.global_batch_size) for one in prepared]
    assert found == [(5, 4), (5, 8), (6, 4), (6, 8)]
    assert {one.checkpoint.keep_best_by for one in prepared} == {"eval/rm/accuracy"}


def test_a_metric_that_the_data_never_gives_is_refused_as_the_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dry_runs(monkeypatch)
    given = make_sweep(metric="eval/rm/best_of_k")
    trials = make_trials(make_config(tmp_path), given, "sweep.yaml")
    with pytest.raises(InputError, match=r"^sweep.yaml: metric is 'eval/rm/best_of_k', which"):
        prepare(trials, given, "sweep.yaml")


def test_grace_that_lasts_as_long_as_a_trial_is_refused_with_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dry_runs(monkeypatch, steps=20)
    trials = make_trials(make_config(tmp_path), make_sweep(), "sweep.yaml")
    prepare(trials, make_sweep(asha={"grace_steps": 19}), "sweep.yaml")
    message = "asha.grace_steps is 20, but lr-000-seed5 has 20 steps"
    with pytest.raises(InputError, match=message):
        prepare(trials, make_sweep(asha={"grace_steps": 20}), "sweep.yaml")


def test_a_sweep_that_is_refused_leaves_no_record_and_no_run_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dry_runs(monkeypatch)
    opened = []
    monkeypatch.setattr(ParentRun, "open", opened.append)
    monkeypatch.setattr(module, "ray_cluster", lambda *_: nullcontext())
    monkeypatch.setattr(module, "count_parallel", lambda *_: 1)
    sweep = Sweep.open(make_config(tmp_path), make_sweep(metric="eval/rm/best_of_k"), "sweep.yaml")
    with pytest.raises(InputError, match="never gives"):
        sweep.run()
    assert not sweep.folder.exists("sweep.json")
    assert opened == []
    Sweep.open(make_config(tmp_path), make_sweep(metric="eval/rm/accuracy"), "sweep.yaml")


@pytest.mark.parametrize(
    ("clusters", "wanted", "workers", "parallel"),
    [
        ([ClusterConfig()], None, 8, 8),
        ([ClusterConfig(num_workers=2, cpus_per_worker=2)], None, 4, 2),
        ([ClusterConfig(num_workers=2)], 3, 6, 3),
        ([ClusterConfig(num_workers=1), ClusterConfig(num_workers=3)], None, 6, 2),
    ],
)
def test_a_machine_s_cores_are_shared_by_trials(
    monkeypatch, clusters: list[ClusterConfig], wanted: int | None, workers: int, parallel: int
):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    shared, found = share_machine(clusters, wanted)
    assert (shared.num_workers, found) == (workers, parallel)


def test_trials_are_counted_with_their_evaluators(monkeypatch):
    monkeypatch.setattr(ray_cluster, "_machines", lambda: [{"CPU": 9.0}])
    where = {"within": 8, "beside": 4}
    configs = {
        name: parse_config(
            {
                "data": {"eval": ["a.jsonl"]},
                "evaluation": {"where": name},
                "checkpoint": {"every_steps": 2},
                "cluster": {"num_workers": 1},
            }
        )
        for name in where
    }
    assert {name: count_parallel([config], None) for name, config in configs.items()} == where
    assert count_parallel([*configs.values()], 3) == 3
    with pytest.raises(InputError, match="max_parallel is 5, but the cluster fits 4"):
        count_parallel([*configs.values()], 5)


def test_more_trials_than_fit_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    message = "max_parallel is 3, but this machine's 4 CPU cores fit 2; lower it"
    with pytest.raises(InputError, match=message):
        share_machine([ClusterConfig(num_workers=2)], 3)
