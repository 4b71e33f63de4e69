import math
import statistics
from pathlib import Path

import pytest
from made_sweep import METRIC, leave, trials_in

from rm_ray.sweep.outcomes import read_outcomes
from rm_ray.sweep.ranking import RankedSetting, rank, ranking_json, ranking_table
from rm_ray.sweep.record import mark


def ranked(folder_of: Path, *losses: float | None, metric: str = METRIC) -> list[RankedSetting]:
    folder, trials = trials_in(folder_of)
    for trial, loss in zip(trials, losses, strict=True):
        if loss is not None:
            leave(folder, trial, 0.9, loss)
    return rank(read_outcomes(folder, trials, metric), metric)


def test_settings_are_sorted_by_the_mean_over_seeds_with_its_spread(tmp_path: Path):
    best, worst = ranked(tmp_path, 0.5, 0.3, 0.6, 0.44)
    assert [each.settings["optimizer.learning_rate"] for each in (best, worst)] == [1e-4, 1e-3]
    assert best.mean == pytest.approx(0.37)
    assert best.spread == pytest.approx(statistics.stdev([0.3, 0.44]))
    assert worst.mean == pytest.approx(0.55)


def test_a_loss_is_best_low_and_an_accuracy_high(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    for trial, accuracy in zip(trials, (0.7, 0.6, 0.7, 0.6), strict=True):
        leave(folder, trial)
        found = {"step": 20, "metrics": {"eval/rm/accuracy": accuracy}}
        folder.write_json(f"{trial.name}/evaluations/step-00000020.json", found)
    best, _ = rank(read_outcomes(folder, trials, "eval/rm/accuracy"), "eval/rm/accuracy")
    assert best.mean == 0.7


def test_a_setting_of_which_trials_did_not_finish_comes_last_however_good_the_others(
    tmp_path: Path,
):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.1)
    leave(folder, trials[2], 0.9, finished=False)
    mark(folder, trials[2].name, "stopped early", "by ASHA")
    for trial in (trials[1], trials[3]):
        leave(folder, trial, 0.6)
    best, worst = rank(read_outcomes(folder, trials, METRIC), METRIC)
    assert best.settings == {"optimizer.learning_rate": 1e-4}
    assert worst.mean == pytest.approx(0.5)
    assert worst.describe_trials() == "1 finished, 1 stopped early"


def test_one_seed_has_no_spread_and_no_trial_no_mean(tmp_path: Path):
    one, none = ranked(tmp_path, 0.5, None, None, None)
    assert (one.mean, one.spread) == (0.5, None)
    assert (none.mean, none.spread) == (None, None)


def test_the_table_is_markdown(tmp_path: Path):
    assert ranking_table(ranked(tmp_path, 0.5, 0.3, 0.6, 0.44), METRIC).splitlines() == [
        "| optimizer.learning_rate | eval/rm/loss | spread | trials     | steps |",
        "|-------------------------|--------------|--------|------------|-------|",
        "| 0.0001                  | 0.3700       | 0.0990 | 2 finished | 10    |",
        "| 0.001                   | 0.5500       | 0.0707 | 2 finished | 10    |",
    ]


def test_the_json_has_every_trial(tmp_path: Path):
    found = ranking_json(ranked(tmp_path, 0.5, 0.3, 0.6, 0.44), METRIC)
    assert found["metric"] == METRIC
    assert [[one["value"] for one in each["trials"]] for each in found["settings"]] == [
        [0.3, 0.44],
        [0.5, 0.6],
    ]


def test_a_setting_of_which_a_trial_diverged_comes_last_however_good_it_was_before(tmp_path: Path):
    folder, trials = trials_in(tmp_path)
    leave(folder, trials[0], 0.1, math.nan)
    leave(folder, trials[2], 0.2, 0.1)
    for trial in (trials[1], trials[3]):
        leave(folder, trial, 0.6, 0.5)
    best, worst = rank(read_outcomes(folder, trials, METRIC), METRIC)
    assert best.settings == {"optimizer.learning_rate": 1e-4}
    assert (worst.finished_share, worst.values) == (0.5, [0.1])
    assert worst.describe_trials() == "1 finished but diverged, 1 finished"


def test_a_value_of_several_lines_stays_in_its_row_of_the_table(tmp_path: Path):
    (setting, *_) = ranked(tmp_path, 0.5, 0.3, 0.6, 0.44)
    lines = RankedSetting(settings={"data.chat_template": "a|\nb"}, outcomes=setting.outcomes)
    table = ranking_table([lines], METRIC).splitlines()
    assert len(table) == 3
    assert table[2].startswith('| "a\\|\\nb" ')
