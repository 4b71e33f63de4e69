"""Equal keys to repeated, contradicting and resembling rows, beside plain loops."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.audit.repeats import matches
from rm_ray.audit.repeats.matches import (
    KEYED,
    MATCH,
    SKETCHED,
    find_contradictions,
    find_duplicates,
    find_near_duplicates,
    keep_best,
)
from rm_ray.audit.text.minhash import SKETCH_WORDS

RECORDS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 1)), max_size=25)


def keyed(records: list[tuple[int, int]]) -> np.ndarray:
    """Return records at places 10, 11 and so on."""
    return np.array([(k, 10 + i, extra) for i, (k, extra) in enumerate(records)], dtype=KEYED)


def listed(matches: np.ndarray) -> list[tuple[int, int]]:
    return sorted(zip(matches["place"].tolist(), matches["other"].tolist(), strict=True))


@given(RECORDS, st.randoms())
def test_all_but_the_first_of_equal_keys_are_duplicates(records, random):
    first: dict[int, int] = {}
    wanted = []
    for place, (key, _) in enumerate(records, start=10):
        if first.setdefault(key, place) != place:
            wanted.append((place, first[key]))
    shuffled = [*keyed(records)]
    random.shuffle(shuffled)
    assert listed(find_duplicates(np.array(shuffled, dtype=KEYED))) == wanted


@given(RECORDS)
def test_every_row_of_a_contradiction_is_found_with_the_first_opposite_one(records):
    by_key = defaultdict(list)
    for place, (key, sign) in enumerate(records, start=10):
        by_key[key, sign].append(place)
    wanted = [
        (place, by_key[key, -sign][0])
        for place, (key, sign) in enumerate(records, start=10)
        if sign and by_key[key, -sign]
    ]
    assert listed(find_contradictions(keyed(records))) == wanted


def sketches(*rows: tuple[int, int, int]) -> np.ndarray:
    """Return sketches of content, of responses and of prompts that share nothing if unequal."""
    found = np.zeros(len(rows), dtype=SKETCHED)
    values = [0, 2**64 - 1, 0xAAAAAAAAAAAAAAAA]
    for row, (content, responses, prompt) in zip(found, rows, strict=True):
        row["content"] = content
        row["responses"] = [values[responses]] * SKETCH_WORDS
        row["prompt"] = [values[prompt]] * SKETCH_WORDS
    return found


def test_near_duplicates_resemble_an_earlier_row_in_both_prompt_and_responses():
    found = sketches((1, 0, 0), (2, 0, 0), (3, 1, 0), (4, 0, 1), (5, 1, 0), (1, 0, 0))
    records = keyed([(7, i) for i in range(6)])
    near, left = find_near_duplicates(records, found, 0.8)
    # Row 5 has the content of row 0, and so it is a duplicate; row 3 has another prompt.
    assert listed(near) == [(11, 10), (14, 12)]
    assert near["score"].tolist() == [1.0, 1.0]
    assert len(left) == 0


def test_rows_without_a_common_key_are_not_compared():
    found = sketches((1, 0, 0), (2, 0, 0))
    near, left = find_near_duplicates(keyed([(7, 0), (8, 1)]), found, 0.8)
    assert len(near) == len(left) == 0


def test_records_beyond_the_most_compared_are_given_back(monkeypatch):
    monkeypatch.setattr(matches, "MOST_COMPARED", 1)
    monkeypatch.setattr(matches, "AT_ONCE", 2)
    found = sketches((1, 0, 0), (2, 1, 0), (3, 2, 0), (4, 0, 0), (5, 1, 0))
    near, left = find_near_duplicates(keyed([(7, i) for i in range(5)]), found, 0.8)
    assert listed(near) == [(13, 10)]
    assert left["place"].tolist() == [11, 12, 14]


def test_the_best_match_of_each_row_is_kept_in_order():
    found = np.array([(5, 1, 0.8), (3, 2, 0.9), (5, 4, 0.9), (5, 2, 0.9)], dtype=MATCH)
    assert listed(keep_best(found)) == [(3, 2), (5, 2)]
    assert len(keep_best(found[:0])) == 0
