import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from rm_ray.commands.inspect import main
from rm_ray.errors import InputError
from rm_ray.preflight.inspection import SourceFinding, refuse_empty

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


def test_a_group_is_shown_with_its_responses_comparisons_and_scores():
    def side(content: str, **score: float) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": content}]
        return {"messages": messages, "text": f"Why? {content}", "num_tokens": 3, **score}

    compared: list[dict[str, Any]] = [
        {"better": 2, "worse": 0, "weight": 1.0, "margin": 0.5, "probability": 1.0},
        {"better": 0, "worse": 1, "weight": 1.0, "margin": 0.0, "probability": 0.75},
        {"better": 1, "worse": 2, "weight": 1.0, "margin": 0.0, "probability": 0.5},
    ]
    responses = [side("So.", score=2.0), side("Sure."), side("So it is.", score=4.5)]
    row = {"source": "a.jsonl", "row": 4, "responses": responses, "comparisons": compared}
    alone = {"source": "a.jsonl", "row": 5, "responses": [side("So.")], "comparisons": []}
    shown = SourceFinding(source="a.jsonl", read_as="rows", examples=[row, alone]).describe()

    assert "response 1 3 tokens, response 2 3 tokens, response 3 3 tokens\n" in shown
    labels = (
        "compared: 3 beats 1 by 0.5; 1 beats 2 with probability 0.75; 2 ties with 3; "
        "scores: 2, -, 4.5"
    )
    assert labels in shown
    assert '  response 3 message: {"role": "assistant", "content": "So it is."}' in shown
    assert "  shared text:\n    | Why? S\n  response 1 text after it:\n    | o.\n" in shown
    assert "compared: none\n" in shown
    assert shown.endswith("  text:\n    | Why? So.")


def test_rows_that_the_objective_cannot_use_are_shown_as_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = str(write(tmp_path / "a.jsonl", ROWS[:1] + ROWS[2:3]))

    (source,) = inspect_json(capsys, "--data", path, "--objective.margin", "scale")["sources"]

    assert (source["rows"], source["pairs"]) == (2, 1)
    assert source["refused"] == {"nothing for the objective to learn from": 1}


def test_the_groups_that_rows_would_form_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    answers = ["one", "two", "three"]
    rows: list[dict[str, Any]] = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt in ("Why?", "Who?")
        for chosen, rejected in itertools.combinations(answers, 2)
    ]
    rows += [{"prompt": "Why?", "chosen": "one", "rejected": "two", "source": "other"}]
    rows += [{"prompt": "When?", "chosen": "one", "rejected": "two", "tie": True}]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.jsonl", rows[::2])
    write(tmp_path / "folder" / "b.jsonl", rows[1::2])
    options = ("--data", str(tmp_path / "folder"), "--data.group_by_prompt", "True")

    (source,) = inspect_json(capsys, *options)["sources"]
    assert (source["grouped_by_prompt"], source["groups" if "groups" in source else "pairs"]) == (
        4, 8
    )  # fmt: skip
    (source,) = inspect_json(capsys, *options, "--data.max_responses", "2")["sources"]
    assert source["grouped_by_prompt"] == 8
    (source,) = inspect_json(capsys, *options, "--objective.loss", "plackett_luce")["sources"]
    assert source["grouped_by_prompt"] == 3
    assert source["refused"] == {"nothing for the objective to learn from": 1}
    shown = SourceFinding(source="a", read_as="rows", rows=8, groups=8, grouped=4).describe()
    assert "  8 pairs of 8 rows\n  grouped by prompt: 4 groups" in shown


def test_a_pair_with_scores_is_shown_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"prompt": "Why?", "responses": ["So.", "No."], "scores": [4, 1]}
    path = str(write(tmp_path / "a.jsonl", [row]))

    (shown,) = inspect_json(capsys, "--data", path)["rows"]

    assert [side["score"] for side in shown["responses"]] == [4.0, 1.0]


def test_sources_without_rows_are_not_said_to_be_refused():
    with pytest.raises(InputError, match="the sources have no rows"):
        refuse_empty([SourceFinding(source="a.jsonl", read_as="JSON Lines")])
