import math
from pathlib import Path

import pytest
from made_cache import REFUSED, Row, cache_row, group_row, make_parts

from rm_ray.data.cache.group_counts import GroupCounts, count_groups
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.rows.column_readings import ColumnReading
from rm_ray.data.rows.row_readings import RowReading

BOTH = {"chosen": "chosen", "rejected": "rejected"}


def counted(fragment: int, row: int, tokens: int, **about: object) -> Row:
    """Return a cache row with conversations of ``tokens`` and ``tokens + 1`` tokens."""
    ids = list(range(tokens + 1))
    reading = RowReading(used=BOTH).to_json()
    hashes = [bytes([row]) * 16, bytes([row + 100]) * 16]
    about = {"reading": reading, "response_hashes": hashes, **about}
    return {**cache_row(fragment, row, ids[1:], ids), **about}


def compared(row: int, responses: str, *comparisons: tuple[int, int], **about: object) -> Row:
    """Return the row of a group with a response of one token for each letter."""
    conversations = [[ord(letter)] for letter in responses]
    reading = RowReading(used=BOTH).to_json()
    hashes = [letter.encode() * 16 for letter in responses]
    about = {"reading": reading, "response_hashes": hashes, **about}
    return group_row(0, row, conversations, comparisons, **about)


def tie(row: int, responses: str, first: int = 0, second: int = 1) -> Row:
    return compared(row, responses, (first, second), probability=[0.5])


def count(parts: TokenParts) -> GroupCounts:
    """Count the groups of rows that are not grouped by prompt."""
    return count_groups(parts, parts)


def repeats(folder: Path, *rows: Row) -> tuple[int, int]:
    counts = count(make_parts(folder / "parts", rows))
    return counts.duplicates, counts.contradictions


def test_counts_leave_out_refused_rows(tmp_path: Path):
    asked = RowReading(used={**BOTH, "prompt": "question"}, left=("id",)).to_json()
    parts = make_parts(
        tmp_path / "parts",
        [counted(0, 0, 3, source="b"), {"fragment": 0, "row": 9, **REFUSED}],
        [counted(0, 1, 4, source="a", reading=asked), counted(2, 2, 5, source="b")],
        origins=("x", "y", "z"),
    )

    assert count(parts) == GroupCounts(
        num_rows=3,
        num_groups=3,
        num_responses=6,
        num_comparisons=3,
        num_ties=0,
        num_scores=0,
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


def test_responses_comparisons_ties_and_scores_of_lists_are_counted(tmp_path: Path):
    rows = [
        compared(0, "abc", (0, 1), (0, 2), (1, 2), probability=[1.0, 0.75, 0.5]),
        compared(1, "d", score=[2.5]),
        compared(2, "efgh", (3, 0), score=[1.0, math.nan, math.nan, 0.0]),
        tie(3, "ij"),
    ]

    counts = count(make_parts(tmp_path / "parts", rows[:2], rows[2:]))

    assert (counts.num_groups, counts.num_responses) == (4, 3 + 1 + 4 + 2)
    assert (counts.num_comparisons, counts.num_ties) == (3 + 1 + 1, 2)
    assert counts.num_scores == 3
    assert counts.num_tokens == 10


def test_a_repeated_pair_is_a_duplicate_and_a_reversed_one_a_contradiction(tmp_path: Path):
    rows = [compared(0, "bw", (0, 1)), compared(1, "bw", (0, 1)), compared(2, "wb", (0, 1))]

    assert repeats(tmp_path, *rows) == (1, 3)


def test_comparisons_of_different_groups_repeat_and_contradict_each_other(tmp_path: Path):
    # a > b, a > c and b > c, of which the next rows repeat a > c and reverse b > c.
    ranked = compared(0, "abc", (0, 1), (0, 2), (1, 2))

    assert repeats(tmp_path, ranked, compared(1, "ca", (1, 0)), compared(2, "xcb", (1, 2))) == (
        1,
        2,
    )


def test_two_annotators_of_one_group_repeat_or_contradict_each_other(tmp_path: Path):
    assert repeats(tmp_path / "agree", compared(0, "ab", (0, 1), (0, 1))) == (1, 0)
    assert repeats(tmp_path / "differ", compared(0, "ab", (0, 1), (1, 0))) == (0, 2)


@pytest.mark.parametrize("responses", ["ab", "ba"])
def test_a_tie_has_no_order(responses: str, tmp_path: Path):
    assert repeats(tmp_path / "same", tie(0, "ab"), tie(1, responses)) == (1, 0)
    assert repeats(tmp_path / "turned", tie(0, "ab"), tie(1, responses, 1, 0)) == (1, 0)


@pytest.mark.parametrize("responses", ["ab", "ba"])
def test_a_tie_neither_repeats_nor_contradicts_a_preference(responses: str, tmp_path: Path):
    assert repeats(tmp_path, compared(0, responses, (0, 1)), tie(1, "ab")) == (0, 0)


def test_a_group_without_comparisons_repeats_nothing(tmp_path: Path):
    assert repeats(tmp_path, compared(0, "a"), compared(1, "a"), compared(2, "ab")) == (0, 0)


def test_a_build_without_pairs_has_zero_counts(tmp_path: Path):
    counts = count(make_parts(tmp_path / "parts", [{"fragment": 0, "row": 0, **REFUSED}]))

    assert (counts.num_groups, counts.num_tokens, counts.by_source) == (0, 0, {})
    assert (counts.num_responses, counts.num_comparisons, counts.num_scores) == (0, 0, 0)
    assert (counts.duplicates, counts.contradictions, counts.readings) == (0, 0, ())


def test_rows_that_became_groups_are_counted_apart_from_groups_by_prompt(tmp_path: Path):
    rows = [compared(0, "ab", (0, 1)), compared(1, "bc", (0, 1)), compared(2, "de", (0, 1))]
    grouped = compared(0, "abc", (0, 1), (1, 2))
    refused = {"fragment": 0, "row": 2, **REFUSED}  # by grouping
    read = make_parts(tmp_path / "rows", [*rows, {"fragment": 0, "row": 3, **REFUSED}])
    parts = make_parts(tmp_path / "parts", [grouped, refused])

    counts = count_groups(parts, read)

    assert (counts.num_rows, counts.num_groups, counts.num_comparisons) == (2, 1, 2)
    assert [reading.rows for reading in counts.readings] == [3]


def test_the_first_row_whose_labels_a_column_reverses_is_found_in_any_order(tmp_path: Path):
    reversal = RowReading(used=BOTH, reversal="'a' is below 'b'").to_json()
    rows = [counted(0, row, 3, reading=reversal) for row in (9, 4, 7)]
    parts = make_parts(tmp_path / "parts", rows[:1], [*rows[1:], counted(0, 1, 3)])

    (reading,) = count(parts).readings

    assert reading.reversals == {"'a' is below 'b'": 3}
    assert reading.first_reversals == {"'a' is below 'b'": 4}
