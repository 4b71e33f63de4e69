import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rm_ray.commands.inspect import main_inspect

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


def inspect_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main_inspect([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_document_has_counts_of_all_rows_and_the_first_ones_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = str(write(tmp_path / "a.jsonl", ROWS))

    document = inspect_json(capsys, "--data", path, "builtin:test", "--rows", "2")

    first, second = document["sources"]
    assert set(first) == {"source", "read_as", "used", "not_used", "rows", "pairs", "refused"}
    assert (first["source"], first["rows"], first["pairs"]) == (path, 4, 2)
    assert first["refused"] == {"identical responses": 1, "too long": 1}
    assert first["used"]["prompt"] == ["prompt"]
    assert first["not_used"] == ["id"]
    assert second["rows"] == second["pairs"] == 500
    places = [(row["source"], row["row"]) for row in document["rows"]]
    assert places == [(path, 0), (path, 1), ("builtin:test", 0), ("builtin:test", 1)]
    pair, refused = document["rows"][:2]
    assert set(pair) == {"source", "row", "chosen", "rejected", "margin"}
    assert pair["margin"] == 0.5
    assert pair["chosen"]["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    ]
    assert pair["chosen"]["text"] == "<|user|>\nWhy?\n<|assistant|>\nBecause.<|end|>"
    assert pair["chosen"]["num_tokens"] > pair["rejected"]["num_tokens"]
    assert set(refused) == {"source", "row", "refused", "detail"}
    assert refused["refused"] == "identical responses"


def test_a_truncated_conversation_is_shown_as_it_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    row = {"prompt": "long " * 100, "chosen": "Because.", "rejected": "No."}
    path = str(write(tmp_path / "a.jsonl", [row]))

    limits = ["--data.max_length", "64", "--data.over_length", "truncate"]
    (shown,) = inspect_json(capsys, "--data", path, *limits)["rows"]

    assert shown["chosen"]["num_tokens"] == 64
    assert shown["chosen"]["text"].endswith("Because.<|end|>")
    assert len(shown["chosen"]["text"]) < 200


def test_the_rows_of_a_recipe_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path / "a.jsonl", ROWS)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data:\n  train: {path}\n")

    assert main_inspect(["--recipe", str(recipe)]) == 0

    out = capsys.readouterr().out
    assert "2 pairs of 4 rows" in out
    assert f"row 1 of {path}: refused, identical responses" in out
    assert "  shared text:\n    | <|user|>\n    | Why?\n    | <|assistant|>\n" in out
    assert "tokens of a conversation:" in out


def test_bad_input_ends_with_2_and_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main_inspect(["--data", str(tmp_path / "gone.jsonl")]) == 2
    assert "no such file" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main_inspect(["--rows", "-1"])


def test_no_script_takes_pythons_inspect_from_this_folder():
    scripts = sorted((ROOT / "jobs").glob("*.py"))

    assert all("sys.path[:] = [path for path in" in script.read_text() for script in scripts)
    code = "import sys, runpy; sys.path[0] = sys.argv[1]; runpy.run_path(sys.argv[2]); "
    code += "import inspect; print(inspect.__file__)"
    arguments = [str(ROOT / "jobs"), str(ROOT / "jobs" / "train.py")]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert Path(done.stdout.strip()).parent != ROOT / "jobs"


def test_a_mapped_column_that_no_row_has_ends_with_2_as_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = str(write(tmp_path / "a.jsonl", ROWS))

    assert main_inspect(["--data", path, "--data.columns", "prompt=nope"]) == 2

    out = capsys.readouterr().out
    assert "2 pairs of 4 rows" in out
    assert "data.columns reads prompt from 'nope', which no row has; the columns that" in out
    assert main_inspect(["--data", path, "--data.columns", "prompt=prompt"]) == 0


def test_a_mapped_column_of_the_held_out_pairs_alone_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train = str(write(tmp_path / "a.jsonl", ROWS))
    other = {"question": "Who?", "chosen": "You.", "rejected": "Me."}
    held_out = str(write(tmp_path / "b.jsonl", [other]))
    sources = ["--data.train", train, "--data.eval", held_out]

    assert main_inspect([*sources, "--data.columns", "prompt=question"]) == 0
    assert f"row 0 of {held_out}" not in capsys.readouterr().out
    assert main_inspect([*sources, "--data.columns", "prompt=nope"]) == 2
