import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.commands.inspect import main

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
    assert main([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_document_counts_all_rows_and_shows_the_first_in_order(
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


def test_a_truncated_conversation_is_shown_as_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    row = {"prompt": "long " * 100, "chosen": "Because.", "rejected": "No."}
    path = str(write(tmp_path / "a.jsonl", [row]))

    limits = ["--data.max_length", "64", "--data.over_length", "truncate"]
    (shown,) = inspect_json(capsys, "--data", path, *limits)["rows"]

    assert shown["chosen"]["num_tokens"] == 64
    assert shown["chosen"]["text"].endswith("Because.<|end|>")
    assert len(shown["chosen"]["text"]) < 200
