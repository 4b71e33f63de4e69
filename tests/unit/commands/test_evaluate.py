import json
from pathlib import Path

import pytest

from rm_ray.commands.evaluate import report_on
from rm_ray.config.column_rules import NO_RULES
from rm_ray.errors import InputError
from rm_ray.scoring.output import ROWS, ScoredRows, chunk_name, to_json_lines
from rm_ray.storage import Storage


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
    assert f"plots   {tmp_path}/plots" in caplog.messages


def test_rows_without_a_better_response_have_no_report(tmp_path: Path):
    single = {"prompt": "How many?", "response": "Three", "reward": 4.0, "num_tokens": 9}
    with pytest.raises(InputError, match="no row tells which response is better"):
        report_on(scored(tmp_path, [single]), "a/model")
    assert not (tmp_path / "report.json").exists()
