import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import (
    STATISTICS,
    RewardStatistics,
    describe_rewards,
    find_statistics,
    keep_statistics,
)
from rm_ray.pretrained import PretrainedName
from rm_ray.storage import Storage

KNOWN = RewardStatistics(mean=2.0, std=4.0, num_responses=3)

REWARDS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=30)


def test_the_deviation_is_that_of_all_responses_as_a_whole():
    found = RewardStatistics.of(np.array([1.0, 3.0, 8.0], dtype=np.float32))
    assert found == RewardStatistics(mean=4.0, std=pytest.approx((26 / 3) ** 0.5), num_responses=3)
    assert KNOWN.standardize(np.array([[2, -2], [10, 0]])).tolist() == [[0.0, -1.0], [2.0, -0.5]]


@given(REWARDS)
def test_standardized_rewards_have_mean_zero_and_deviation_one_and_can_be_restored(rewards):
    raw = np.array(rewards, dtype=np.float32)
    found = RewardStatistics.of(raw)
    if len(set(rewards)) == 1:
        assert found is None
    if found is None or found.std < 1e-3 * abs(found.mean):
        return  # what is left of the digits says little
    standardized = found.standardize(raw)
    assert standardized.mean() == pytest.approx(0, abs=1e-9)
    assert standardized.std() == pytest.approx(1, abs=1e-9)
    assert found.restore(standardized) == pytest.approx(raw, rel=1e-9, abs=1e-9 * found.std)
    assert (np.diff(standardized[np.argsort(raw)]) >= 0).all()


@pytest.mark.parametrize("rewards", [[], [1.5], [0.1] * 7, [1.0, float("nan")], [1, float("inf")]])
def test_rewards_without_a_spread_have_no_statistics(rewards):
    assert RewardStatistics.of(np.array(rewards)) is None
    assert describe_rewards(np.array(rewards)) is None


def model(folder: Path, option: str = "--model") -> PretrainedName:
    return PretrainedName(name=str(folder), option=option)


def test_a_runs_step_leaves_its_statistics_beside_the_export(tmp_path: Path):
    run, export = (Storage.open(str(tmp_path / name)) for name in ("run", "run/export"))
    report = {"step": 3, "rewards": describe_rewards(np.array([0.0, 4.0]))}
    run.write_json("evaluations/step-00000003.json", report)
    run.write_json("evaluations/step-00000004.json", {"step": 4})  # of an earlier version
    for step in (2, 4):
        keep_statistics(run, step, export)
        assert not export.exists(STATISTICS)
    keep_statistics(run, 3, export)
    found = find_statistics(model(tmp_path / "run" / "export"), "standardized")
    assert found == RewardStatistics(mean=2.0, std=2.0, num_responses=2)


def test_raw_rewards_ask_for_no_statistics(tmp_path: Path):
    (tmp_path / STATISTICS).write_text("broken")
    assert find_statistics(model(tmp_path), "raw") is None


def test_a_model_without_statistics_is_refused_with_the_way_to_get_them(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        find_statistics(model(tmp_path), "standardized", shown="mine")
    said = str(caught.value)
    assert "--rewards standardized needs the mean and the standard deviation" in said
    assert f"--model 'mine' has no {STATISTICS}" in said
    assert "jobs/evaluate.py --model mine --data HELD_OUT_PAIRS" in said


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"mean": 1.0, "std": 0.0, "num_responses": 3}, "above 0"),
        ({"mean": "1", "std": 1.0, "num_responses": 3}, "finite numbers"),
        ({"mean": 1.0, "std": float("nan"), "num_responses": 3}, "finite numbers"),
        ({"mean": 1.0, "std": 1.0}, "'num_responses'"),
        ([1.0, 2.0], "must be an object"),
        (None, "must be an object"),
    ],
)
def test_broken_statistics_are_refused_by_name(tmp_path: Path, found: Any, said: str):
    (tmp_path / STATISTICS).write_text(json.dumps(found))
    with pytest.raises(InputError, match=said) as caught:
        find_statistics(model(tmp_path), "standardized")
    assert str(tmp_path / STATISTICS) in str(caught.value)


def test_what_is_no_json_is_refused(tmp_path: Path):
    (tmp_path / STATISTICS).write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        find_statistics(model(tmp_path), "standardized")


def test_a_model_on_the_hub_has_its_own(endpoint: str):
    api = huggingface_hub.HfApi(endpoint=endpoint)
    api.create_repo("someone/standardized")
    content = json.dumps(KNOWN.to_json()).encode()
    first = api.upload_file(
        repo_id="someone/standardized", path_in_repo=STATISTICS, path_or_fileobj=content
    )
    name = PretrainedName(name="someone/standardized", option="--model", revision=first.oid)
    assert find_statistics(name, "standardized") == KNOWN
    with pytest.raises(InputError, match="download a model on the Hub for that"):
        find_statistics(PretrainedName(name="someone/else", option="--model"), "standardized")
