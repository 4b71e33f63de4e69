"""Records with equal keys -> rows that repeat, contradict or resemble another row."""

from __future__ import annotations

import numpy as np

from rm_ray.audit.text.minhash import SKETCH_WORDS, estimate_similarity

KEYED = np.dtype([("key", np.uint64), ("place", np.int64), ("extra", np.int64)])
"""A key of a row, its place, and what the search needs besides: a sign, or a number of a sketch."""

MATCH = np.dtype([("place", np.int64), ("other", np.int64), ("score", np.float32)])
"""A row, the row that it repeats or contradicts, and how sure that is."""

SKETCHED = np.dtype(
    [
        ("content", np.uint64),
        ("responses", np.uint64, SKETCH_WORDS),
        ("prompt", np.uint64, SKETCH_WORDS),
    ]
)
"""Sketches of a row, and the hash of its prompt and responses."""

MOST_COMPARED = 64
"""Rows of one band that the others are compared with."""

AT_ONCE = 1 << 18
"""Rows whose sketches are in memory together."""

_NONE = np.iinfo(np.int64).max


def find_duplicates(records: np.ndarray) -> np.ndarray:
    """Return each row that has the key of an earlier one, with the first of them."""
    records, first = _runs(records)
    if not len(records):
        return _matches(records["place"], records["place"])
    head = records["place"][first][np.cumsum(_is_first(records, first)) - 1]
    again = records["place"] != head
    return _matches(records["place"][again], head[again])


def find_contradictions(records: np.ndarray) -> np.ndarray:
    """Return each row that prefers one of two responses where another row prefers the other one.

    ``extra`` is 1 or -1 by which of them is better, and 0 for a tie, which contradicts nothing.
    """
    records, first = _runs(records[records["extra"] != 0])
    if not len(records):
        return _matches(records["place"], records["place"])
    run = np.cumsum(_is_first(records, first)) - 1
    opposite = np.full(len(records), _NONE)
    for side in (1, -1):
        places = np.where(records["extra"] == side, records["place"], _NONE)
        earliest = np.minimum.reduceat(places, first)[run]
        opposite = np.where(records["extra"] == -side, earliest, opposite)
    found = opposite != _NONE
    return _matches(records["place"][found], opposite[found])


def find_near_duplicates(
    records: np.ndarray, sketches: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row that resembles an earlier one with the same key in prompt and responses.

    Returns also the records that were compared with ``MOST_COMPARED`` rows of their key and that
    resemble none of them; they may resemble another one.

    ``extra`` is the number of the row's sketch in ``sketches``. Rows with the same prompt and
    responses are left to the other searches. In each round, all rows of a key are compared with
    the first one that resembles none before it.
    """
    found = [np.empty(0, dtype=MATCH)]
    for _ in range(MOST_COMPARED):
        records, first = _runs(records)
        if not len(records):
            break
        head = records[first][np.cumsum(_is_first(records, first)) - 1]
        scores, is_same = _compare(sketches, records["extra"], head["extra"])
        is_near = (scores >= similarity) & ~is_same
        found.append(_matches(records["place"][is_near], head["place"][is_near], scores[is_near]))
        records = records[~is_near & ~is_same]
    return np.concatenate(found), _runs(records)[0]


def _compare(
    sketches: np.ndarray, ones: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how similar N rows are to N others, and which have the same prompt and responses."""
    scores = np.empty(len(ones), dtype=np.float32)
    is_same = np.empty(len(ones), dtype=bool)
    for first in range(0, len(ones), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        one, other = sketches[ones[part]], sketches[others[part]]
        is_same[part] = one["content"] == other["content"]
        scores[part] = np.minimum(
            estimate_similarity(one["responses"], other["responses"]),
            estimate_similarity(one["prompt"], other["prompt"]),
        )
    return scores, is_same


def keep_best(matches: np.ndarray) -> np.ndarray:
    """Return one match of each row, in order: the highest score, and of equals the first row."""
    order = np.lexsort((matches["other"], -matches["score"], matches["place"]))
    ordered = matches[order]
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered["place"][1:] != ordered["place"][:-1]
    kept: np.ndarray = ordered[is_first]
    return kept


def _runs(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the records whose key is not unique, by key and place, and where each key begins."""
    ordered = records[np.lexsort((records["place"], records["key"]))]
    keys = ordered["key"]
    begins = np.ones(len(keys) + 1, dtype=bool)
    begins[1:-1] = keys[1:] != keys[:-1]
    is_alone = begins[:-1] & begins[1:]
    kept = ordered[~is_alone]
    return kept, np.flatnonzero(begins[:-1][~is_alone])


def _is_first(records: np.ndarray, first: np.ndarray) -> np.ndarray:
    is_first = np.zeros(len(records), dtype=bool)
    is_first[first] = True
    return is_first


def _matches(
    places: np.ndarray, others: np.ndarray, scores: np.ndarray | float = 1.0
) -> np.ndarray:
    found = np.empty(len(places), dtype=MATCH)
    found["place"], found["other"], found["score"] = places, others, scores
    return found
