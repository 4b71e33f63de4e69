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
