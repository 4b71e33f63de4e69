"""The command that shows what a run would train on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rm_ray.commands.inspect import main

ROOT = Path(__file__).resolve().parents[3]

ROWS: list[dict[str, Any]] = [
    {"id": 7, "prompt": "Why?", "chosen": "Because.", "rejected": "No.", "margin": 0.5},
    {"id": 8, "prompt": "Why?", "chosen": "Same.", "rejected": "Same."},
    {"id": 9, "prompt": "Who?", "chosen": "You.", "rejected": "Me."},
    {"id": 10, "prompt": "When?", "chosen": "Now.", "rejected": "x" * 3_000},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_rows_of_a_recipe_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "a.jsonl", ROWS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data:\n  train: {path}\n")

    assert main(["--recipe", str(recipe)]) == 0

    out = capsys.readouterr().out
    assert "2 pairs of 4 rows" in out
    assert f"row 1 of {path}: refused, identical responses" in out
    assert "  shared text:\n    | <|user|>\n    | Why?\n    | <|assistant|>\n" in out
    assert "tokens per conversation:" in out


def test_rows_that_are_excluded_are_shown_as_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "a.jsonl", ROWS)
    named = {"origin": str(path), "row": 2, "reason": "duplicates"}
    excluded = write(tmp_path / "duplicates.jsonl", [named])
    assert main(["--data", str(path), "--data.exclude", str(excluded), "--rows", "3"]) == 0
    out = capsys.readouterr().out
    assert "1 pairs of 4 rows" in out
    assert f"row 2 of {path}: refused, excluded: duplicates" in out


def test_bad_input_exits_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--data", str(tmp_path / "gone.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["--rows", "-1"])


def test_jobs_inspect_does_not_shadow_pythons_inspect():
    scripts = sorted((ROOT / "jobs").glob("*.py"))

    assert all("sys.path[:] = [path for path in" in script.read_text() for script in scripts)
    code = "import sys, runpy; sys.path[0] = sys.argv[1]; runpy.run_path(sys.argv[2]); "
    code += "import inspect; print(inspect.__file__)"
    arguments = [str(ROOT / "jobs"), str(ROOT / "jobs" / "train.py")]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert Path(done.stdout.strip()).parent != ROOT / "jobs"


def test_a_mapped_column_that_no_row_has_exits_with_2_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = str(write(tmp_path / "a.jsonl", ROWS))

    assert main(["--data", path, "--data.columns", "prompt=nope"]) == 2

    out = capsys.readouterr().out
    assert "2 pairs of 4 rows" in out
    assert "data.columns reads prompt from 'nope', but no row has that column" in out
    assert main(["--data", path, "--data.columns", "prompt=prompt"]) == 0


def test_only_the_held_out_pairs_may_have_a_mapped_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = str(write(tmp_path / "a.jsonl", ROWS))
    other = {"question": "Who?", "chosen": "You.", "rejected": "Me."}
    held_out = str(write(tmp_path / "b.jsonl", [other]))
    sources = ["--data.train", train, "--data.eval", held_out]

    assert main([*sources, "--data.columns", "prompt=question"]) == 0
    assert f"row 0 of {held_out}" not in capsys.readouterr().out
    assert main([*sources, "--data.columns", "prompt=nope"]) == 2


def test_a_source_of_which_every_row_is_refused_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    same = str(write(tmp_path / "same.jsonl", [ROWS[1], ROWS[1], ROWS[3]]))

    assert main(["--data", same]) == 2

    out = capsys.readouterr().out
    assert "0 pairs of 3 rows" in out
    assert (
        "error: nothing is left to train on; all 3 rows were refused (2 identical responses, "
        "1 too long)" in out
    )
    assert main(["--data", same, str(write(tmp_path / "good.jsonl", ROWS[:1]))]) == 0


def test_rows_whose_labels_another_column_reverses_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rated = [
        {"prompt": f"Why {i}?", "chosen": "So.", "rejected": "No.", "score_chosen": score,
         "score_rejected": 5.0}
        for i, score in enumerate((8.0, 3.0, 5.0, 4.0))
    ]  # fmt: skip

    assert main(["--data", str(write(tmp_path / "a.jsonl", rated)), "--rows", "0"]) == 0

    said = "THE REJECTED RESPONSE IS SAID TO BE BETTER in 2 of 4 rows "
    said += "('score_chosen' is below 'score_rejected', the first of them row 1)"
    assert said in capsys.readouterr().out
