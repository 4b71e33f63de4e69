import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from rm_ray.config.column_rules import NO_RULES
from rm_ray.config.scoring import Rows, ScoringModel
from rm_ray.errors import InputError
from rm_ray.scoring.output import (
    MANIFEST,
    MODELS,
    READINGS,
    REFUSED,
    ROWS,
    ScoredRows,
    chunk_name,
    claim_folder,
    list_chunks,
    require_chunks,
    to_json_lines,
)
from rm_ray.storage import Storage

MODEL, DATA = ScoringModel(model="someone/model"), Rows(data=("rows.jsonl",))
HASHES = {"model_hash": "a" * 64, "rows_hash": "b" * 64}


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage.open(str(tmp_path / "scored"))


def test_a_new_folder_gets_a_manifest_with_the_date(folder: Storage):
    claimed, day = claim_folder(folder.path, MODEL, DATA, **HASHES)
    assert (claimed, day) == (folder, datetime.now().astimezone().date())
    note = folder.read_json(MANIFEST)
    assert (note["model"], note["rows"]) == ("a" * 64, "b" * 64)
    assert note["settings"]["model"] == "someone/model"
    assert note["template_date"] == day.isoformat()


def test_a_folder_with_scores_keeps_its_date(folder: Storage):
    claim_folder(folder.path, MODEL, DATA, **HASHES)
    note = folder.read_json(MANIFEST)
    folder.write_json(MANIFEST, note | {"template_date": "2024-02-29"})
    folder.write_text(f"{ROWS}/{chunk_name(0, 0)}", "{}\n")
    _, day = claim_folder(folder.path, MODEL, DATA, **HASHES)
    assert day.isoformat() == "2024-02-29"


@pytest.mark.parametrize("name", ["model", "rows"])
def test_scores_of_another_model_or_of_other_rows_are_not_mixed(folder: Storage, name: str):
    claim_folder(folder.path, MODEL, DATA, **HASHES)
    folder.write_text(f"{ROWS}/{chunk_name(0, 0)}", "{}\n")
    with pytest.raises(InputError, match=rf"other rows \({name} differ\)"):
        claim_folder(folder.path, MODEL, DATA, **HASHES | {f"{name}_hash": "c" * 64})


def test_rows_read_from_other_columns_are_other_rows(folder: Storage):
    claim_folder(folder.path, MODEL, DATA, **HASHES)
    folder.write_text(f"{ROWS}/{chunk_name(0, 0)}", "{}\n")
    for rule in (
        {"ignore_columns": ("system",)},
        {"form": "documented"},
        {"max_responses": 4},
        {"score_weights": ("helpfulness=1",)},
    ):
        with pytest.raises(InputError, match="rows differ"):
            claim_folder(folder.path, MODEL, replace(DATA, **rule), **HASHES)


def test_a_folder_without_scores_is_cleared_and_reused(folder: Storage):
    claim_folder(folder.path, MODEL, DATA, **HASHES)
    folder.write_text(f"{REFUSED}/{chunk_name(0, 0)}", "{}\n")
    claim_folder(folder.path, MODEL, DATA, model_hash="c" * 64, rows_hash="d" * 64)
    assert not folder.exists(REFUSED)
    assert folder.read_json(MANIFEST)["model"] == "c" * 64


def test_the_folder_of_an_ensemble_or_of_unknown_rows_is_refused(folder: Storage):
    folder.write_text(f"{ROWS}/{chunk_name(0, 0)}", "{}\n")
    with pytest.raises(InputError, match="has scores that are not of one model"):
        claim_folder(folder.path, MODEL, DATA, **HASHES)
    folder.delete(ROWS)
    folder.write_json(MODELS, ["a", "b"])
    with pytest.raises(InputError, match="has scores that are not of one model"):
        claim_folder(folder.path, MODEL, DATA, **HASHES)
    assert not folder.exists(MANIFEST)


def test_the_default_folder_is_named_after_the_hashes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    claimed, _ = claim_folder(None, MODEL, DATA, **HASHES)
    assert claimed.path == str(tmp_path / "rm_ray" / "evaluations" / "aaaaaaaa-bbbbbbbb")


def test_files_on_other_machines_are_reported_as_missing(folder: Storage):
    for name in ("a.jsonl", "b.jsonl"):
        folder.write_text(f"{ROWS}/{name}", "{}\n")

    require_chunks(folder, {"a.jsonl", "b.jsonl"})
    with pytest.raises(
        InputError, match=r"1 of 3 chunks were scored but are missing from .* --output"
    ):
        require_chunks(folder, {"a.jsonl", "b.jsonl", "c.jsonl"})


def test_drafts_are_not_chunks(folder: Storage):
    folder.write_text(f"{ROWS}/{chunk_name(0, 1)}", "")
    folder.write_text(f"{ROWS}/{chunk_name(0, 2)}.0123.tmp", "{half")
    assert list_chunks(folder, ROWS) == ["part-00000-00000001.jsonl"]
    assert list_chunks(folder, READINGS) == []


def test_scored_rows_are_in_order_with_their_origins_and_refused_rows_in_one_file(folder: Storage):
    for fragment, chunk, numbers in [(0, 0, [1, 2]), (0, 1, [3]), (1, 0, [4])]:
        rows = [{"number": number} for number in numbers]
        folder.write_text(f"{ROWS}/{chunk_name(fragment, chunk)}", to_json_lines(rows))
    for chunk, reasons in enumerate([["empty"], ["too_long", "empty"]]):
        text = to_json_lines([{"reason": reason} for reason in reasons])
        folder.write_text(f"{REFUSED}/{chunk_name(0, chunk)}", text)

    scored = ScoredRows.collect(folder, ("a.jsonl", "b.jsonl"), NO_RULES)

    assert [(origin, row["number"]) for origin, row in scored] == [
        ("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.jsonl", 4),
    ]  # fmt: skip
    assert scored.num_scored == 4
    assert scored.refused == {"empty": 2, "too_long": 1}
    lines = folder.read_text("quarantine.jsonl").splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["empty", "too_long", "empty"]


def test_a_lone_surrogate_survives_a_round_trip():
    rows = [{"response": "half \ud83d", "note": "whole \U0001f600 \u00e9"}]
    text = to_json_lines(rows)
    assert [json.loads(line) for line in text.encode().decode().splitlines()] == rows
    assert "\U0001f600 \u00e9" in text
