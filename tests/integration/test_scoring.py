"""Evaluation and scoring of the model that the shared run exported, on the shared cluster."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import FinishedRun, held_out_pairs
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm_ray.commands import evaluate, score
from rm_ray.data.sources.synthetic import generate_pairs


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((output / "rows").glob("*.jsonl")) for row in lines(part)]


@torch.no_grad()
def reward(folder: str, messages: list[dict[str, str]]) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, return_dict=False)
    return float(model(input_ids=torch.tensor([ids])).logits.item())


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed_rows() -> list[Any]:
    """Every form of row, some broken, with columns of their own."""
    pairs = list(generate_pairs("train", 700))
    rows: list[Any] = [{**pair, "number": i} for i, pair in enumerate(pairs)]
    question = pairs[0]["chosen"][:-1]
    rows[3] = {"prompt": question, "responses": ["yes", "no", "why not?"], "number": 3}
    rows[5] = {"messages": pairs[5]["chosen"], "number": 5, "tags": ["a", None]}
    rows[7] = {"number": 7}
    rows[300] = "no row"
    rows[301] = {**pairs[301], "chosen": pairs[301]["chosen"][:-1]}
    return rows


def test_evaluation_gives_the_figures_of_the_run_and_the_benchmarks_own_averages(
    finished: FinishedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    subsets = ["alpacaeval-easy", "mt-bench-easy", "math-prm"]
    data = write(
        tmp_path / "bench.jsonl",
        [{**pair, "subset": subsets[i % 3], "id": i} for i, pair in enumerate(held_out_pairs())],
    )
    command = ["--model", finished.result["export"], "--data", str(data)]
    assert evaluate.main([*command, "--output", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    metrics = finished.result["metrics"]
    assert report["overall"]["pairs"] == 41
    for name in ("accuracy", "ties", "chosen_rewards", "rejected_rewards", "reward_margin"):
        assert report["overall"][name] == pytest.approx(metrics[f"eval/rm/{name}"], abs=1e-5)
    loss = metrics["eval/rm/loss"]  # of the default objective, Bradley-Terry
    assert report["overall"]["bradley_terry_loss"] == pytest.approx(loss, abs=1e-5)
    scored = rows_of(tmp_path / "out")
    right = {
        subset: [r["chosen_reward"] > r["rejected_reward"] for r in scored if r["subset"] == subset]
        for subset in subsets
    }
    share = {subset: sum(found) / len(found) for subset, found in right.items()}
    chat = (100 * share["alpacaeval-easy"] + 28 * share["mt-bench-easy"]) / 128
    assert report["benchmark"] == pytest.approx(
        {"Chat": chat, "Reasoning": share["math-prm"], "Score": (chat + share["math-prm"]) / 2}
    )
    printed = capfd.readouterr().out
    assert f"{metrics['eval/rm/accuracy']:.4f}" in printed
    assert "by the benchmark's own averages" in printed
    assert (tmp_path / "out" / "plots" / "evaluation.png").stat().st_size > 10_000


@dataclass(frozen=True)
class Scored:
    """Rows of every form that were scored by two workers, and the command that did it."""

    data: Path
    output: Path
    command: list[str]


@pytest.fixture(scope="module")
def scored(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Scores in a folder in which a command that was refused has left its traces."""
    folder = tmp_path_factory.mktemp("scored")
    data, output = write(folder / "rows.jsonl", mixed_rows()), folder / "scored"
    taken = write(folder / "taken.jsonl", [{"prompt": "a", "response": "b", "reward": 1.0}])
    model = ["--model", finished.result["export"]]
    assert score.main([*model, "--data", str(taken), "--output", str(output)]) == 2
    command = [*model, "--data", str(data), "--output", str(output)]
    assert score.main([*command, "--num_workers", "2"]) == 0
    return Scored(data, output, command)


def test_rows_of_every_form_keep_their_columns_and_get_rewards(
    finished: FinishedRun, scored: Scored
) -> None:
    model = finished.result["export"]
    rows, given = rows_of(scored.output), mixed_rows()
    left_out = {7, 300, 301}
    assert [row["number"] for row in rows] == [i for i in range(700) if i not in left_out]
    for row in rows:
        before = given[row["number"]]
        assert {name: row[name] for name in before} == before
    by_number = {row["number"]: row for row in rows}
    assert by_number[5]["reward"] == pytest.approx(reward(model, given[5]["messages"]), abs=1e-5)
    for side in ("chosen", "rejected"):
        expected = reward(model, given[0][side])
        assert by_number[0][f"{side}_reward"] == pytest.approx(expected, abs=1e-5)
    best = by_number[3]
    assert best["rewards"][best["best"]] == max(best["rewards"])
    assert best["best_response"] == given[3]["responses"][best["best"]]
    refused = lines(scored.output / "quarantine.jsonl")
    assert {(row["row"], row["raw"] == given[row["row"]]) for row in refused} == {
        (number, True) for number in left_out
    }
    assert all(row["reason"] and row["origin"] == str(scored.data) for row in refused)


def test_what_is_finished_is_not_scored_again(
    scored: Scored, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = rows_of(scored.output)
    parts = sorted((scored.output / "rows").glob("*.jsonl"))
    assert len(parts) == 3
    parts[1].unlink()  # as a kill leaves it, with a draft
    (scored.output / "rows" / f"{parts[1].name}.0123.tmp").write_text("{half")
    before = {part: part.stat().st_mtime_ns for part in (parts[0], parts[2])}
    assert score.main(scored.command) == 0
    printed = capfd.readouterr().out
    assert "2 chunks are already finished" in printed
    assert "697 rows scored" in printed
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert rows_of(scored.output) == expected
    others = [*scored.command[:2], "--data", "builtin:test=41", *scored.command[4:]]
    assert score.main(others) == 2
    assert "scores from another model or other rows (rows differ)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "/nowhere", "--data", "builtin"], "--model '/nowhere' cannot be loaded"),
        (["--data", "{tmp}/texts.jsonl"], "must have one of the columns chosen, rejected, "),
        (["--data"], "data must be a list of at least one source"),
        (["--data", "{tmp}/taken.jsonl"], "already have a column 'reward'"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    finished: FinishedRun,
    tmp_path: Path,
    options: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "texts.jsonl", [{"text": "hello"}])
    write(tmp_path / "taken.jsonl", [{"prompt": "a", "response": "b", "reward": 1.0}])
    given = [option.replace("{tmp}", str(tmp_path)) for option in options]
    model = [] if "--model" in given else ["--model", finished.result["export"]]
    output = ["--output", str(tmp_path / "out")]
    assert score.main([*model, *given, *output]) == 2
    assert message in capfd.readouterr().out
