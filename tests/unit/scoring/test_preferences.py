from pathlib import Path

import pytest

from rm_ray.config.column_rules import NO_RULES
from rm_ray.errors import InputError
from rm_ray.scoring.output import ROWS, ScoredRows, chunk_name, to_json_lines
from rm_ray.scoring.preferences import evaluation_report, read_preferences
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


def test_the_best_right_response_is_compared_with_the_best_wrong_one(tmp_path: Path):
    preferences = read_preferences(scored(tmp_path, [PAIR, SINGLE, SEVERAL]))
    pairs = preferences.pairs
    assert pairs.chosen_rewards.tolist() == [1.5, 2.0]
    assert pairs.rejected_rewards.tolist() == [-0.5, 3.0]
    assert pairs.chosen_tokens.tolist() == [9, 5]
    assert pairs.rejected_tokens.tolist() == [8, 7]
    assert pairs.margins.tolist() == [0.5, 0.0]
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
        "rows_scored", "rows_refused", "readings", "overall", "by_source", "by_subset",
        "calibration", "calibration_error", "length", "benchmark", "worst",
    ]  # fmt: skip
    assert report["rows_scored"] == 3
    assert report["overall"]["accuracy"] == 0.5
    assert report["worst"] == [SEVERAL]
