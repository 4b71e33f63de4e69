import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rm_ray.commands import evaluate
from rm_ray.commands.evaluate import main, report_on
from rm_ray.config.column_rules import NO_RULES
from rm_ray.errors import InputError
from rm_ray.evaluation.reward_statistics import STATISTICS, RewardStatistics
from rm_ray.scoring.ensemble import Ensemble
from rm_ray.scoring.output import MANIFEST, ROWS, ScoredRows, chunk_name, to_json_lines
from rm_ray.storage import Storage

PAIR = {"prompt": "How many?", "chosen": "Three", "rejected": "Four"}


def scored(folder: Path, rows: list[dict[str, object]]) -> ScoredRows:
    storage = Storage.open(str(folder))
    storage.write_text(f"{ROWS}/{chunk_name(0, 0)}", to_json_lines(rows))
    return ScoredRows.collect(storage, ("here.jsonl",), NO_RULES)


def pair(chosen_reward: float, rejected_reward: float) -> dict[str, object]:
    return {
        "prompt": "How many?", "chosen": "Three", "rejected": "Four", "chosen_tokens": 9,
        "rejected_tokens": 8, "chosen_reward": chosen_reward, "rejected_reward": rejected_reward,
    }  # fmt: skip


def test_report_and_plots_go_to_the_folder_of_the_scored_rows(tmp_path: Path, caplog):
    caplog.set_level("INFO", "rm_ray")
    worst = pair(-1.0, 2.0)
    report_on(scored(tmp_path, [pair(1.0, 0.0), worst, pair(0.5, 0.0), pair(3.0, 1.0)]), "a/model")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["overall"]["accuracy"] == 0.75
    assert report["worst"][0] == worst
    assert (tmp_path / "plots" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert "among the worst: " + json.dumps(worst) in caplog.messages
    assert f"report  {tmp_path}/report.json" in caplog.messages
    statistics = json.loads((tmp_path / STATISTICS).read_text())
    assert statistics == report["rewards"]
    assert statistics == {
        "mean": 0.8125,
        "std": pytest.approx(1.17094, abs=1e-5),
        "num_responses": 8,
    }
    said = "rewards of 8 responses: mean +0.812, standard deviation 1.171"
    assert any(said in message for message in caplog.messages)
    assert f"plots   {tmp_path}/plots" in caplog.messages


def test_rows_without_a_better_response_have_no_report(tmp_path: Path):
    single = {"prompt": "How many?", "response": "Three", "reward": 4.0, "num_tokens": 9}
    with pytest.raises(InputError, match="no row tells which response is better"):
        report_on(scored(tmp_path, [single]), "a/model")
    assert not (tmp_path / "report.json").exists()


def test_the_report_of_several_models_says_how_accuracy_depends_on_the_spread(
    tmp_path: Path, caplog
):
    caplog.set_level("INFO", "rm_ray")
    first = [pair(1.0, 0.0) | {"prompt": "a"}, pair(-3.0, 0.0) | {"prompt": "b"}]
    second = [pair(1.0, 0.0) | {"prompt": "a"}, pair(1.0, 0.0) | {"prompt": "b"}]
    members = (scored(tmp_path / "1", first), scored(tmp_path / "2", second))
    ensemble = Ensemble(names=("one", "two"), members=members)
    report_on(ensemble.join(str(tmp_path / "both")), "one two", ensemble)
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert report["overall"]["accuracy"] == 0.5
    means = [json.loads((tmp_path / one / STATISTICS).read_text())["mean"] for one in "12"]
    assert means == [-0.5, 0.5]
    assert not (tmp_path / "both" / STATISTICS).exists()
    found = report["ensemble"]
    assert [(one["model"], one["accuracy"]) for one in found["models"]] == [
        ("one", 0.5),
        ("two", 1),
    ]
    assert [one["accuracy"] for one in found["by_spread"]] == [1.0, 0.0]
    assert any("by the spread of the reward margin" in message for message in caplog.messages)


@pytest.mark.parametrize("is_column", [False, True])
def test_an_ensemble_that_cannot_be_written_is_refused_before_any_model_scores(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, is_column: bool
):
    monkeypatch.setattr(evaluate, "score_rows", lambda *_: pytest.fail("a model scores"))
    row = pair(1.0, 0.0) if not is_column else {**PAIR, "chosen_reward_spread": 1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    if not is_column:
        Storage.open(str(tmp_path / "out")).write_json(MANIFEST, {})
    output = ["--output", str(tmp_path / "out")]
    assert main(["--model", "A", "B", "--data", str(tmp_path / "rows.jsonl"), *output]) == 2
    said = "column 'chosen_reward_spread'" if is_column else "has the scores of one model"
    assert said in capsys.readouterr().out


def test_standardized_rewards_leave_the_bradley_terry_loss_as_it_was(tmp_path: Path):
    statistics = RewardStatistics(mean=2.0, std=4.0, num_responses=9)
    moved = [pair(-0.25, -0.5), pair(0.75, 1.0)]  # of 1 and 0, 5 and 6
    report_on(replace(scored(tmp_path, moved), statistics=statistics), "a/model")
    overall = json.loads((tmp_path / "report.json").read_text())["overall"]
    assert overall["bradley_terry_loss"] == pytest.approx(np.logaddexp(0, [-1.0, 1.0]).mean())
    assert (overall["chosen_rewards"], overall["reward_margin"]) == (0.25, 0.0)
    assert not (tmp_path / STATISTICS).exists()


def test_the_mean_of_standardized_models_has_the_loss_of_their_mean_raw_rewards(tmp_path: Path):
    raw = ([(1.0, 0.0), (5.0, 7.0)], [(9.0, 3.0), (2.0, 2.5)])
    given = [RewardStatistics(mean=m, std=s, num_responses=9) for m, s in ((2.0, 4.0), (1.0, 0.5))]
    members = [
        replace(
            scored(
                tmp_path / str(i),
                [
                    pair(*((reward - one.mean) / one.std for reward in both)) | {"prompt": str(n)}
                    for n, both in enumerate(pairs)
                ],
            ),
            statistics=one,
        )
        for i, (pairs, one) in enumerate(zip(raw, given, strict=True))
    ]
    ensemble = Ensemble(names=("one", "two"), members=tuple(members))
    report_on(ensemble.join(str(tmp_path / "both")), "one two", ensemble)
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    margins = np.mean([[a - b for a, b in pairs] for pairs in raw], axis=0)
    loss = np.logaddexp(0, -margins).mean()
    assert report["overall"]["bradley_terry_loss"] == pytest.approx(loss)
    standardized = [[(a - b) / one.std for a, b in p] for p, one in zip(raw, given, strict=True)]
    mean = np.mean(standardized)
    assert report["overall"]["reward_margin"] == pytest.approx(mean)
