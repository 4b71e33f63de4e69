from dataclasses import replace
from pathlib import Path

import numpy as np
import plain_figures
import pytest

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.scoring import Rows
from rm_ray.errors import InputError
from rm_ray.evaluation.reports.table_and_plots import report_table
from rm_ray.evaluation.reward_statistics import RewardStatistics
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.evaluation.scored_pairs import ScoredPairs
from rm_ray.scoring.output import ROWS, ScoredRows, chunk_name, to_json_lines
from rm_ray.scoring.preferences import evaluation_report, join_raw, read_preferences
from rm_ray.storage import Storage

PAIR = {
    "prompt": "How many?", "chosen": "Three", "rejected": "Four", "margin": 0.5,
    "chosen_reward": 1.5, "rejected_reward": -0.5, "chosen_tokens": 9, "rejected_tokens": 8,
}  # fmt: skip
SEVERAL = {
    "prompt": "How many?", "chosen": ["Three", "3"], "rejected": ["Four", "Five"],
    "subset": "Math", "id": "7", "rewards": [0.0, 2.0, 1.0, 3.0], "num_tokens": [9, 5, 8, 7],
}  # fmt: skip
SINGLE = {"prompt": "How many?", "response": "Three", "reward": 4.0, "num_tokens": 9}


def scored(folder: Path, rows: list[dict]) -> ScoredRows:
    storage = Storage.open(str(folder))
    storage.write_text(f"{ROWS}/{chunk_name(0, 0)}", to_json_lines(rows))
    return ScoredRows.collect(storage, ("here.jsonl",), NO_RULES)


def test_every_right_response_is_compared_with_every_wrong_one(tmp_path: Path):
    preferences = read_preferences(scored(tmp_path, [PAIR, SINGLE, SEVERAL]))
    pairs = preferences.groups.pairs
    assert pairs.chosen_rewards.tolist() == [1.5, 0.0, 0.0, 2.0, 2.0]
    assert pairs.rejected_rewards.tolist() == [-0.5, 1.0, 3.0, 1.0, 3.0]
    assert pairs.chosen_tokens.tolist() == [9, 9, 9, 5, 5]
    assert pairs.rejected_tokens.tolist() == [8, 8, 7, 8, 7]
    assert pairs.margins.tolist() == [0.5, 0.0, 0.0, 0.0, 0.0]
    assert pairs.weights.tolist() == [1.0, 0.25, 0.25, 0.25, 0.25]
    assert preferences.groups.rewards.tolist() == [1.5, -0.5, 0.0, 2.0, 1.0, 3.0]
    assert preferences.sources[0] == "here.jsonl"
    assert preferences.subsets == ["", "Math"]
    assert preferences.rows == [PAIR, SEVERAL]
    assert (preferences.prompts[1].num_correct, preferences.prompts[1].id) == (2, "7")


def test_rows_without_a_better_response_have_no_accuracy(tmp_path: Path):
    with pytest.raises(InputError, match="no row tells which response is better"):
        read_preferences(scored(tmp_path, [SINGLE]))


def test_the_report_starts_with_how_the_rows_were_read(tmp_path: Path):
    rows = scored(tmp_path, [PAIR, SINGLE, SEVERAL])
    report = evaluation_report(read_preferences(rows), rows)
    assert list(report) == [
        "rows_scored", "rows_refused", "rows_not_compared", "readings", "overall", "rewards",
        "by_source", "by_subset", "calibration", "calibration_error", "length", "benchmark",
        "worst",
    ]  # fmt: skip
    assert report["rows_scored"] == 3
    assert report["overall"]["accuracy"] == (1 + 1 / 4) / 2
    assert report["overall"]["lists"]["best_of_k"] == 0.0
    assert report["worst"] == [SEVERAL]


def test_plain_pairs_have_their_plain_figures_bit_for_bit(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [
        {**PAIR, "chosen_reward": float(chosen), "rejected_reward": float(rejected)}
        for chosen, rejected in rng.normal(size=(30, 2))
    ]
    found = scored(tmp_path, rows)
    report = evaluation_report(read_preferences(found), found)
    pairs = ScoredPairs(
        chosen_rewards=np.array([row["chosen_reward"] for row in rows]),
        rejected_rewards=np.array([row["rejected_reward"] for row in rows]),
        margins=np.full(30, 0.5),
        chosen_tokens=np.full(30, 9),
        rejected_tokens=np.full(30, 8),
    )
    plain = plain_figures.plain_report(pairs, ["here.jsonl"] * 30, [""] * 30)
    for name in ("overall", "length"):
        assert plain[name] == {part: report[name][part] for part in plain[name]}
    assert plain["calibration_error"] == report["calibration_error"]


def test_reward_bench_2_s_averages_are_those_of_the_first_response_alone(tmp_path: Path):
    one = {**SEVERAL, "chosen": ["Three"], "rejected": ["Four", "Five", "Six"]}
    rows = scored(tmp_path, [{**one, "rewards": rewards} for rewards in (
        [3.0, 1.0, 2.0, 0.0], [2.0, 2.0, 1.0, 0.0], [1.0, 2.0, 1.0, 0.0],
    )])  # fmt: skip
    report = evaluation_report(read_preferences(rows), rows)
    assert report["benchmark"] == {"Math": 0.5, "Score": 0.5}
    assert report["overall"]["lists"]["best_of_k"] == 0.5


LISTS = {
    "prompt": "How many?", "chosen": ["3", "4"], "rejected": ["5", "6"],
    "rewards": [0.0, 1.0, 2.0, 3.0], "num_tokens": [4, 5, 6, 7],
}  # fmt: skip


@pytest.mark.parametrize(
    ("label", "better", "probability", "margin"),
    [
        ({}, [0.0, 0.0, 1.0, 1.0], 1.0, 0.0),
        ({"margin": 2.5}, [0.0, 0.0, 1.0, 1.0], 1.0, 2.5),
        ({"preference": 0.75}, [0.0, 0.0, 1.0, 1.0], 0.75, 0.0),
        ({"preference": 0.25}, [2.0, 3.0, 2.0, 3.0], 0.75, 0.0),
        ({"tie": True}, [0.0, 0.0, 1.0, 1.0], 0.5, 0.0),
    ],
)
@pytest.mark.parametrize("subset", ["", "Math"])
def test_lists_on_both_sides_are_compared_as_in_training(
    tmp_path: Path, subset: str, label: dict, better: list, probability: float, margin: float
):
    preferences = read_preferences(scored(tmp_path, [{**LISTS, **label, "subset": subset}]))
    pairs = preferences.groups.pairs
    assert pairs.chosen_rewards.tolist() == better
    assert pairs.probabilities.tolist() == [probability] * 4
    assert pairs.margins.tolist() == [margin] * 4
    assert len(preferences.prompts) == (probability == 1.0 and better[0] == 0.0)


def test_a_response_on_both_sides_is_not_compared_unless_reward_bench_2_repeats_it(tmp_path: Path):
    twice = {**LISTS, "rejected": ["3", "6"]}
    preferences = read_preferences(scored(tmp_path, [twice, {**twice, "subset": "Math"}]))
    assert preferences.unusable == {"identical responses": 1}
    assert preferences.subsets == ["Math"]
    assert len(preferences.groups.pairs) == 4


def test_a_response_that_is_repeated_on_one_side_counts_once(tmp_path: Path):
    repeated = {**LISTS, "rejected": ["5", "5"], "rewards": [0.0, 1.0, 2.0, 2.0]}
    pairs = read_preferences(scored(tmp_path, [repeated])).groups.pairs
    assert pairs.rejected_rewards.tolist() == [2.0, 2.0]
    assert pairs.weights.tolist() == [0.5, 0.5]


def test_responses_that_python_calls_equal_keep_their_own_rewards(tmp_path: Path):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    one, true = (
        [{"role": "assistant", "tool_calls": [
            {**call, "function": {"name": "f", "arguments": {"x": value}}}]}]
        for value in (1, True)
    )  # fmt: skip
    row = {"prompt": "How many?", "responses": [one, true], "ranks": [2, 1]}
    row |= {"rewards": [0.0, 5.0], "num_tokens": [3, 3]}
    pairs = read_preferences(scored(tmp_path, [row])).groups.pairs
    assert (pairs.chosen_rewards.tolist(), pairs.rejected_rewards.tolist()) == ([5.0], [0.0])


def test_rows_that_only_have_scores_are_evaluated(tmp_path: Path):
    rows = scored(tmp_path, [{**SINGLE, "reward": reward, "score": reward} for reward in (1, 2, 3)])
    report = evaluation_report(read_preferences(rows), rows)
    assert report["overall"]["pairs"] == 0
    assert report["overall"]["scores"] == {"responses": 3, "spearman": pytest.approx(1.0)}
    assert "responses" in report_table(report)


def test_the_scores_of_an_evaluation_are_weighted_as_in_training(tmp_path: Path):
    row = {"prompt": "How many?", "responses": ["3", "4"], "rewards": [5.0, 6.0]}
    row |= {"num_tokens": [3, 3], "scores": [{"a": 3, "b": 4}, {"a": 2, "b": 1}]}
    found = scored(tmp_path, [row])
    assert read_preferences(found).groups.pairs.chosen_rewards.tolist() == [5.0]
    rules = Rows(data=("here.jsonl",), score_weights=("a=1", "b=-1")).rules
    weighted = read_preferences(replace(found, rules=rules))
    assert weighted.groups.scores.tolist() == [-1.0, 1.0]
    assert weighted.groups.pairs.chosen_rewards.tolist() == [6.0]


def test_rows_with_more_responses_than_allowed_are_scored_but_not_compared(tmp_path: Path):
    rows = scored(tmp_path, [LISTS, PAIR])
    rules = Rows(data=("here.jsonl",), max_responses=3).rules
    assert read_preferences(replace(rows, rules=rules)).unusable == {"too many responses": 1}


def test_raw_rewards_of_several_models_are_restored_and_averaged():
    groups = ScoredGroups.one(rewards=[0.0, 1.0], tokens=[3, 4], better=[0], worse=[1])
    other = replace(groups, rewards=np.array([2.0, -1.0]))
    halved = RewardStatistics(mean=5.0, std=2.0, num_responses=9)
    assert join_raw([groups, other], [None, None]) is None
    found = join_raw([groups, other], [halved, RewardStatistics(mean=0, std=4, num_responses=9)])
    assert found is not None
    assert found.rewards.tolist() == [(5 + 8) / 2, (7 - 4) / 2]
    assert found.better.tolist() == [0]
