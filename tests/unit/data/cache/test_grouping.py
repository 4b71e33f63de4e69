import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.config.sections.batch import Layout
from rm_ray.data.cache.grouping import MOST_OPEN, GroupLimits, RowLabels, combine, divide


def labels(
    *keys: bytes, wins: tuple[tuple[int, int], ...] = ((0, 1),), tokens: int = 5
) -> RowLabels:
    return RowLabels(
        keys=keys,
        prompt=0,
        tokens=(tokens,) * len(keys),
        comparisons=tuple((b, w, 1 / len(wins), 0.0, 1.0) for b, w in wins),
        scores=(math.nan,) * len(keys),
    )


def scored(key: bytes, score: float) -> RowLabels:
    return RowLabels(keys=(key,), prompt=0, tokens=(5,), comparisons=(), scores=(score,))


def tie(left: bytes, right: bytes) -> RowLabels:
    return RowLabels(
        keys=(left, right),
        prompt=0,
        tokens=(5, 5),
        comparisons=((0, 1, 1.0, 0.0, 0.5),),
        scores=(math.nan,) * 2,
    )


def test_pairs_exploded_from_a_list_become_the_list():
    ranked = [b"a", b"b", b"c", b"d"]
    pairs = [labels(better, worse) for better, worse in itertools.combinations(ranked, 2)]

    (group,) = divide(pairs, GroupLimits(max_responses=4, max_tokens=20))
    positions = {key: place for place, key in enumerate(group.places)}
    found = combine(pairs, positions)

    assert list(positions) == ranked
    assert {(b, w) for b, w, *_ in found.comparisons} == set(itertools.combinations(range(4), 2))
    assert all(math.isclose(weight, 1 / 6) for _, _, weight, _, _ in found.comparisons)


def test_equal_comparisons_add_their_weights_and_opposite_ones_stay_apart():
    rows = [labels(b"a", b"b"), labels(b"a", b"b"), labels(b"b", b"a"), labels(b"c", b"a")]
    found = combine(rows, {b"a": 0, b"b": 1, b"c": 2})
    assert found.comparisons == (
        (0, 1, 0.5, 0.0, 1.0), (1, 0, 0.25, 0.0, 1.0), (2, 0, 0.25, 0.0, 1.0)
    )  # fmt: skip


def test_a_tie_has_no_order():
    found = combine([tie(b"a", b"b"), tie(b"b", b"a")], {b"a": 0, b"b": 1})
    assert found.comparisons == ((0, 1, 1.0, 0.0, 0.5),)


def test_each_row_weighs_the_same_however_many_comparisons_it_makes():
    rows = [labels(b"a", b"b", b"c", wins=((0, 1), (0, 2), (1, 2))), labels(b"a", b"d")]
    found = combine(rows, {b"a": 0, b"b": 1, b"c": 2, b"d": 3})
    by_sides = {(b, w): weight for b, w, weight, *_ in found.comparisons}
    assert math.isclose(by_sides[0, 3], 0.5)
    assert math.isclose(by_sides[0, 1], 1 / 6)


def test_single_scored_responses_are_compared_by_their_scores():
    rows = [scored(b"a", 2.0), scored(b"b", 3.0), scored(b"c", 2.0), scored(b"b", 4.0)]
    found = combine(rows, {b"a": 0, b"b": 1, b"c": 2})
    sides = {(b, w, p) for b, w, _, _, p in found.comparisons}
    assert sides == {(1, 0, 1.0), (1, 2, 1.0), (0, 2, 0.5)}
    assert found.scores == (2.0, 3.5, 2.0)
    assert math.isclose(math.fsum(weight for _, _, weight, *_ in found.comparisons), 1.0)


def test_a_row_joins_the_group_that_has_its_responses_before_one_with_room():
    rows = [labels(b"a", b"b"), labels(b"c", b"d"), labels(b"c", b"e"), labels(b"b", b"a")]
    groups = divide(rows, GroupLimits(max_responses=3, max_tokens=100))
    assert [group.rows for group in groups] == [[0, 3], [1, 2]]


def test_a_row_over_the_limits_stays_whole_and_alone():
    rows = [labels(b"a", b"b", tokens=60), labels(b"a", b"c", tokens=3)]
    groups = divide(rows, GroupLimits(max_responses=9, max_tokens=100))
    assert [group.rows for group in groups] == [[0], [1]]


def test_the_prompt_counts_once_in_the_packed_layout_and_with_each_response_in_the_padded_one():
    rows = [replace(labels(b"a", other, tokens=20), prompt=75) for other in (b"b", b"c", b"d")]

    def sizes(max_tokens: int, layout: Layout) -> list[int]:
        limits = GroupLimits(max_responses=9, max_tokens=max_tokens, layout=layout)
        return [len(group.places) for group in divide(rows, limits)]

    assert sizes(75 + 4 * 20, "packed") == [4]
    assert sizes(75 + 4 * 20 - 1, "packed") == [3, 2]
    assert sizes(4 * 95, "padded") == [4]
    assert sizes(4 * 95 - 1, "padded") == [3, 2]


def test_many_rows_of_one_prompt_are_divided_and_combined_in_time():
    rows = [labels(b"a%d" % i, b"b%d" % i) for i in range(4_000)]
    groups = divide(rows, GroupLimits(max_responses=32, max_tokens=150))
    assert {len(group.places) for group in groups} == {30, 20}
    wide = [labels(*(b"%d-%d" % (i, k) for k in range(17)), wins=()) for i in range(500)]
    assert len(divide(wide, GroupLimits(max_responses=32, max_tokens=10_000))) == 500
    assert MOST_OPEN < 500
    singles = [scored(b"%d" % (i % 4), float(i)) for i in range(20_000)]
    found = combine(singles, {b"%d" % i: i for i in range(4)})
    assert len(found.comparisons) == 12
    assert math.isclose(math.fsum(weight for _, _, weight, *_ in found.comparisons), 1.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=12))
def test_single_ratings_are_compared_each_with_each(ratings: list[tuple[int, int]]):
    positions = {b"%d" % i: i for i in range(4)}
    found = combine([scored(b"%d" % i, float(score)) for i, score in ratings], positions)

    expected: Counter[tuple[int, int, float]] = Counter()
    for (left, one), (right, other) in itertools.combinations(ratings, 2):
        if left != right:
            better, worse = (left, right) if one >= other else (right, left)
            tie = (min(left, right), max(left, right), 0.5)
            expected[tie if one == other else (better, worse, 1.0)] += 1
    total = expected.total()
    assert {(b, w, p): pytest.approx(n / total) for (b, w, p), n in expected.items()} == {
        (b, w, p): weight for b, w, weight, _, p in found.comparisons
    }


keys = st.sampled_from([bytes([letter]) for letter in b"abcdefgh"])

rows_of_a_prompt = st.lists(
    st.lists(keys, min_size=2, max_size=4, unique=True).map(lambda found: labels(*found)),
    max_size=12,
)


@given(rows_of_a_prompt, st.integers(2, 6), st.integers(10, 60))
def test_each_row_is_in_one_group_and_groups_of_several_rows_keep_the_limits(
    rows: list[RowLabels], max_responses: int, max_tokens: int
):
    groups = divide(rows, GroupLimits(max_responses=max_responses, max_tokens=max_tokens))
    assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
    for group in groups:
        own = [rows[index] for index in group.rows]
        assert set(group.places) == {key for row in own for key in row.keys}
        if set(own[0].keys) != set(group.places):
            assert len(group.places) <= max_responses
            assert group.own == 5 * len(group.places) <= max_tokens
