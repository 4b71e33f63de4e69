import math
from pathlib import Path

import pytest
from made_sweep import METRIC, leave, trials_in

from rm_ray.sweep import follower
from rm_ray.sweep.follower import STEP, WORST, Follower
from rm_ray.sweep.record import mark


def follow(folder: str, trial: str, metric: str = METRIC) -> Follower:
    """A follower without Ray, as Tune sets one up."""
    one = Follower.__new__(Follower)
    one.setup({"sweep": folder, "trial": trial, "metric": metric})
    return one


def test_evaluations_are_reported_in_order_and_then_the_end(tmp_path: Path):
    folder, (trial, *_) = trials_in(tmp_path)
    leave(folder, trial, 0.7, 0.6)
    one = follow(folder.path, trial.name)
    found = [one.step() for _ in range(3)]
    assert found == [{STEP: 5, METRIC: 0.7}, {STEP: 10, METRIC: 0.6}, {"done": True}]


def test_a_trial_that_was_stopped_reports_what_it_has_and_ends(tmp_path: Path):
    folder, (trial, *_) = trials_in(tmp_path)
    leave(folder, trial, 0.7, finished=False)
    mark(folder, trial.name, "stopped early", "by ASHA")
    one = follow(folder.path, trial.name)
    assert [one.step(), one.step()] == [{STEP: 5, METRIC: 0.7}, {"done": True}]


def test_an_answer_comes_even_without_news(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(follower, "ANSWER_S", 0.0)
    monkeypatch.setattr(follower, "LOOK_EVERY_S", 0.01)
    folder, (trial, *_) = trials_in(tmp_path)
    one = follow(folder.path, trial.name)
    assert one.step() == {}
    leave(folder, trial, 0.7, finished=False)
    assert one.step() == {STEP: 5, METRIC: 0.7}
    assert one.step() == {}


@pytest.mark.parametrize(("metric", "worst"), [(METRIC, WORST), ("eval/rm/accuracy", -WORST)])
def test_a_metric_that_is_not_finite_is_the_worst_that_can_be(
    tmp_path: Path, metric: str, worst: float
):
    folder, (trial, *_) = trials_in(tmp_path)
    for step, found in enumerate((math.nan, math.inf, 0.5), start=1):
        report = {"step": step, "metrics": {metric: found}}
        folder.write_json(f"{trial.name}/evaluations/step-{step:08d}.json", report)
    one = follow(folder.path, trial.name, metric)
    assert [one.step()[metric] for _ in range(3)] == [worst, worst, 0.5]
