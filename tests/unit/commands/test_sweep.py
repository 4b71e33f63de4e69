from pathlib import Path

import pytest
from made_sweep import METRIC, leave, trials_in

from rm_ray.commands.sweep import main, summary
from rm_ray.sweep.outcomes import read_outcomes
from rm_ray.sweep.ranking import rank
from rm_ray.sweep.record import mark
from rm_ray.sweep.sweep import SweepResult


def test_a_wrong_sweep_is_refused_before_anything_is_written(tmp_path: Path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text("settings:\n  optimizer.learning_rate: {grid: [-1.0]}\n")
    arguments = ["--sweep", str(path), "--run.storage_path", str(tmp_path / "storage")]
    assert main([*arguments, "--data.eval", "builtin:test"]) == 2
    said = capsys.readouterr().out
    assert said.startswith(f"error: {path}, with optimizer.learning_rate=-1.0: ")
    assert not (tmp_path / "storage").exists()


def test_the_file_of_the_sweep_is_required(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--run.name", "lr"])
    assert left.value.code == 2
    assert "--sweep" in capsys.readouterr().err


def test_the_summary_has_the_table_the_files_and_the_failed_trials(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    for trial in trials[:3]:
        leave(folder, trial, 0.5)
    mark(folder, trials[3].name, "failed", "the loss is not finite; see its log")
    ranked = rank(read_outcomes(folder, trials, METRIC), METRIC)
    said = summary(SweepResult(ranked=ranked, folder=folder), METRIC)
    assert "| 0.001                   | 0.5000" in said
    assert f"winner's recipe   {tmp_path}/lr/winner.yaml" in said
    assert "1 trial is not over; the same command tries it again:" in said
    assert "lr-001-seed6: the loss is not finite; see its log" in said


def test_the_summary_says_that_there_is_no_winner(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    for trial in trials:
        leave(folder, trial, 0.5, finished=False)
    ranked = rank(read_outcomes(folder, trials, METRIC), METRIC)
    said = summary(SweepResult(ranked=ranked, folder=folder), METRIC)
    assert "no winner         the best setting has no value, or trials not over" in said
    assert "winner.yaml" not in said
