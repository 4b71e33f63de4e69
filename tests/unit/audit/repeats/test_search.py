"""The search over rows with a part of them in memory."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rm_ray.audit.contamination.evaluation_sets import EvaluationSets
from rm_ray.audit.repeats import matches, partitions
from rm_ray.audit.repeats.search import KINDS, RepeatSearch
from rm_ray.audit.row_facts import SCHEMA, read_block
from rm_ray.audit.text.minhash import SKETCH_WORDS
from rm_ray.config.column_rules import NO_RULES
from rm_ray.data.cache.exclusions import NO_EXCLUSIONS, find_places

ROWS, PER_TABLE = 300, 30


def made_rows() -> list[dict]:
    """Rows of which many are equal, some reversed, and some alike but not equal."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        content = int(rng.integers(0, 120))
        sign = 1 if rng.random() < 0.9 else -1
        alike = content // 2
        rows.append(
            {
                "fragment": i // 100, "row": i % 100, "reason": "",
                "content": content, "labelled": content * 10 + sign,
                "compared": [content], "signs": [sign],
                "bands": [alike * 100 + b for b in range(16)],
                "responses_sketch": [alike] * SKETCH_WORDS, "prompt_sketch": [0] * SKETCH_WORDS,
            }
        )  # fmt: skip
    return rows


def search(folder: Path, rows: list[dict]) -> dict[str, list[tuple[int, int]]]:
    repeats = RepeatSearch(folder, len(rows))
    for first in range(0, len(rows), PER_TABLE):
        repeats.add(pa.Table.from_pylist(rows[first : first + PER_TABLE], schema=SCHEMA))
    found = {}
    for kind in KINDS:
        matched = np.concatenate([*repeats.find(kind, 0.99)])
        sides = []
        for side in ("place", "other"):
            fragments, numbers = find_places(matched[side])
            sides.append((fragments * 100 + numbers).tolist())
        found[kind] = list(zip(*sides, strict=True))
    return found


@pytest.mark.parametrize("at_once", [1 << 21, 40])
def test_matches_are_those_of_plain_loops_and_in_order(tmp_path: Path, monkeypatch, at_once: int):
    monkeypatch.setattr(partitions, "RECORDS_AT_ONCE", at_once)
    rows = made_rows()

    found = search(tmp_path / "work", rows)

    first_labelled: dict[int, int] = {}
    duplicates = []
    for i, row in enumerate(rows):
        if first_labelled.setdefault(row["labelled"], i) != i:
            duplicates.append((i, first_labelled[row["labelled"]]))
    assert found["duplicates"] == duplicates
    contradictions = []
    for i, row in enumerate(rows):
        opposite = (
            j for j, other in enumerate(rows)
            if other["compared"] == row["compared"] and other["signs"] != row["signs"]
        )  # fmt: skip
        if (other := next(opposite, None)) is not None:
            contradictions.append((i, other))
    assert found["contradictions"] == contradictions
    first_alike: dict[int, int] = {}
    near = []
    for i, row in enumerate(rows):
        j = first_alike.setdefault(row["content"] // 2, i)
        if rows[j]["content"] != row["content"]:
            near.append((i, j))
    assert found["near_duplicates"] == near
    assert min(map(len, found.values())) > 10


def test_no_rows_have_no_matches(tmp_path: Path):
    repeats = RepeatSearch(tmp_path / "work", 0)
    assert [len(m) for kind in KINDS for m in repeats.find(kind, 0.8)] == [0, 0, 0]


def find_near(folder: Path, rows: list[dict]) -> tuple[list[int], int]:
    """Return the rows of raw ones that resemble an earlier one, and how many are left open."""
    batch = {
        "fragment": np.zeros(len(rows), dtype=np.int32),
        "row": np.arange(len(rows)),
        "json": np.array([json.dumps(row) for row in rows], dtype=object),
    }
    repeats = RepeatSearch(folder, len(rows))
    repeats.add(read_block(batch, ["a"], NO_RULES, EvaluationSets([]), NO_EXCLUSIONS))
    found = np.concatenate([*repeats.find("near_duplicates", 0.8)])
    return find_places(found["place"])[1].tolist(), repeats.num_open


def made_text(rng: np.random.Generator, words: int) -> str:
    return " ".join(f"w{i}" for i in rng.integers(0, 20_000, words))


def test_near_copies_of_prompts_with_one_word_answers_are_all_found(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(150):
        asked = made_text(rng, 60)
        rows += [{"prompt": p, "chosen": "Yes.", "rejected": "No."} for p in (asked, f"{asked}, x")]
    assert find_near(tmp_path / "work", rows) == ([*range(1, 300, 2)], 0)


def test_questions_under_one_system_prompt_or_with_one_rejected_answer_are_not_alike(
    tmp_path: Path,
):
    rng = np.random.default_rng(0)
    system = {"role": "system", "content": made_text(rng, 400)}
    under_one = [
        {
            "prompt": [system, {"role": "user", "content": made_text(rng, 12)}],
            "chosen": "Yes.", "rejected": "No.",
        }
        for _ in range(100)
    ]  # fmt: skip
    assert find_near(tmp_path / "system", under_one) == ([], 0)
    refusal = made_text(rng, 100)
    refused = [
        {"prompt": made_text(rng, 20), "chosen": made_text(rng, 50), "rejected": refusal}
        for _ in range(200)
    ]
    assert find_near(tmp_path / "refusal", refused) == ([], 0)


def test_rows_that_more_rows_of_a_band_might_resemble_are_counted(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(matches, "MOST_COMPARED", 2)
    rng = np.random.default_rng(0)
    prompt, begin = made_text(rng, 60), made_text(rng, 30)
    rows = [
        {"prompt": prompt, "chosen": f"{begin} {made_text(rng, 15)}", "rejected": "No."}
        for _ in range(40)
    ]
    alike, left = find_near(tmp_path / "work", rows)
    assert alike == []
    assert 0 < left <= 38
