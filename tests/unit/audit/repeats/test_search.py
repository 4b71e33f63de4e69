"""The search over rows with a part of them in memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rm_ray.audit.repeats import partitions
from rm_ray.audit.repeats.search import KINDS, RepeatSearch
from rm_ray.audit.row_facts import SCHEMA
from rm_ray.audit.text.minhash import SKETCH_WORDS
from rm_ray.data.cache.exclusions import find_places

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
        matches = np.concatenate([*repeats.find(kind, 0.99)])
        sides = []
        for side in ("place", "other"):
            fragments, numbers = find_places(matches[side])
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
