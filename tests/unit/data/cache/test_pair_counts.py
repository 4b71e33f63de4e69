from pathlib import Path

from made_cache import REFUSED, Row, cache_row, make_parts

from rm_ray.data.cache.pair_counts import PairCounts, count_pairs
from rm_ray.data.rows.column_readings import ColumnReading
from rm_ray.data.rows.row_readings import RowReading

BOTH = {"chosen": "chosen", "rejected": "rejected"}


def counted(fragment: int, row: int, tokens: int, **about: object) -> Row:
    """Return a cache row with conversations of ``tokens`` and ``tokens + 1`` tokens."""
    ids = list(range(tokens + 1))
    hashes = {"chosen_hash": bytes([row]) * 16, "rejected_hash": bytes([row + 100]) * 16}
    reading = RowReading(used=BOTH).to_json()
    return {**cache_row(fragment, row, ids[1:], ids), "reading": reading, **hashes, **about}


def test_counts_leave_out_refused_rows(tmp_path: Path):
    asked = RowReading(used={**BOTH, "prompt": "question"}, left=("id",)).to_json()
    parts = make_parts(
        tmp_path / "parts",
        [counted(0, 0, 3, source="b"), {"fragment": 0, "row": 9, **REFUSED}],
        [counted(0, 1, 4, source="a", reading=asked), counted(2, 2, 5, source="b")],
        origins=("x", "y", "z"),
    )

    assert count_pairs(parts) == PairCounts(
        num_pairs=3,
        num_tokens=(3 + 4) + (4 + 5) + (5 + 6),
        by_source={"a": 1, "b": 2},
        duplicates=0,
        contradictions=0,
        readings=(
            ColumnReading(
                origin="x",
                rows=2,
                used={
                    "chosen": {"chosen": 2},
                    "rejected": {"rejected": 2},
                    "prompt": {"question": 1},
                },
                left={"id": 1},
            ),
            ColumnReading(
                origin="z", rows=1, used={"chosen": {"chosen": 1}, "rejected": {"rejected": 1}}
            ),
        ),
    )


def test_a_repeated_pair_is_a_duplicate_and_a_reversed_one_a_contradiction(tmp_path: Path):
    better, worse = b"b" * 16, b"w" * 16
    pair = {"chosen_hash": better, "rejected_hash": worse}
    turned = {"chosen_hash": worse, "rejected_hash": better}
    rows = [counted(0, i, 1, **hashes) for i, hashes in enumerate([pair, pair, turned])]

    counts = count_pairs(make_parts(tmp_path / "parts", rows))

    assert (counts.duplicates, counts.contradictions) == (1, 3)


def test_a_build_without_pairs_has_zero_counts(tmp_path: Path):
    counts = count_pairs(make_parts(tmp_path / "parts", [{"fragment": 0, "row": 0, **REFUSED}]))

    assert (counts.num_pairs, counts.num_tokens, counts.by_source) == (0, 0, {})
    assert (counts.duplicates, counts.contradictions, counts.readings) == (0, 0, ())
