import math
from pathlib import Path

from made_sweep import METRIC, leave, trials_in

from rm_ray.sweep.outcomes import read_outcomes
from rm_ray.sweep.record import mark


def test_outcomes_are_read_from_the_folders_of_the_runs(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.7, 0.6, 0.5, 0.4)
    leave(folder, trials[1], 0.7, math.nan, finished=False)
    leave(folder, trials[2], 0.7, 0.65, finished=False)
    mark(folder, trials[1].name, "failed", "the loss is not finite")
    mark(folder, trials[2].name, "stopped early", "by ASHA")
    found = read_outcomes(folder, trials, METRIC)
    assert [(one.state, one.step, one.value, one.is_over) for one in found] == [
        ("finished", 20, 0.4, True),
        ("failed", 10, None, False),
        ("stopped early", 10, 0.65, True),
        ("waiting", 0, None, False),
    ]
    assert found[0].curve == [(5, 0.7), (10, 0.6), (15, 0.5), (20, 0.4)]
    assert found[1].to_json() == {
        "name": "lr-001-seed5", "settings": {"optimizer.learning_rate": 1e-4}, "seed": 5,
        "state": "failed", "step": 10, "value": None, "cause": "the loss is not finite",
    }  # fmt: skip


def test_a_result_counts_more_than_a_mark(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.7)
    mark(folder, trials[0].name, "stopped early", "at the same moment")
    leave(folder, trials[1], 0.7, finished=False)
    mark(folder, trials[1].name, "interrupted", "by someone")
    states = [one.state for one in read_outcomes(folder, trials, METRIC)]
    assert states == ["finished", "unfinished", "waiting", "waiting"]


def test_a_trial_whose_last_evaluation_is_not_finite_has_no_value(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.2, math.nan)
    leave(folder, trials[1], math.inf, 0.4)
    diverged, recovered = read_outcomes(folder, trials[:2], METRIC)
    assert (diverged.state, diverged.value, diverged.has_diverged) == ("finished", None, True)
    assert (diverged.step, diverged.curve) == (10, [(5, 0.2)])
    assert (recovered.value, recovered.has_diverged) == (0.4, False)
    assert recovered.curve == [(10, 0.4)]


def test_an_evaluation_that_does_not_give_the_metric_is_no_value(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.2)
    other = {"step": 10, "metrics": {"eval/rm/accuracy": 1.0}}
    folder.write_json(f"{trials[0].name}/evaluations/step-00000010.json", other)
    (found,) = read_outcomes(folder, trials[:1], METRIC)
    assert (found.step, found.value) == (10, None)
