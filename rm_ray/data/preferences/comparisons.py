"""What the columns of a row say of its responses -> comparisons between them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

from rm_ray.data.preferences.numbers import read_number, require_one_each, unwrap_json
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.groups import Comparison
from rm_ray.data.rows.refusals import Reason, RefusedError

SAME = 1e-9
"""Scores this close, relative to their size, tie: sums of weighted attributes are not exact."""


def read_ranks(value: Any, count: int) -> list[float]:
    """Return the ranks of ``count`` responses; 1 is the best, and equal ranks tie.

    Raises:
        RefusedError: they are not one number from 1 for each response.
    """
    listed = require_one_each(unwrap_json(value), count, "ranks", Reason.BAD_RANKS)
    ranks = [read_number(rank, f"ranks.{i}", Reason.BAD_RANKS) for i, rank in enumerate(listed)]
    for i, rank in enumerate(ranks):
        if rank < 1:
            raise RefusedError(Reason.BAD_RANKS, f"ranks.{i} is {rank:g}; the best rank is 1")
    return ranks


def take_preference(columns: RowColumns) -> float:
    """Return the probability that the chosen side wins: 1 unless ``preference`` or ``tie`` say.

    A certain 0 is refused: an index of the better side would look the same, and with it half of
    the pairs would be reversed.

    Raises:
        RefusedError: they are no probability or truth value, or disagree, or the probability is 0.
    """
    preference, tie = columns.take("preference"), columns.take("tie")
    if preference is None and tie is None:
        return 1.0
    if tie is not None and not isinstance(tie, bool):
        raise _refusal("tie", f"is {str(tie)[:80]!r} and not true or false")
    if preference is None:
        return 0.5 if tie else 1.0
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise _refusal("preference", f"is {str(preference)[:80]!r} and not a number")
    number = float(preference)
    if not 0 <= number <= 1:
        raise _refusal("preference", f"is {number:g} and not from 0 to 1")
    if number == 0:
        raise _refusal("preference", "is 0, so the sides should be written the other way round")
    if tie is not None and tie != (number == 0.5):
        raise _refusal("preference", f"is {number:g} and tie is {str(tie).lower()}")
    return number


_MEANINGS = {
    "preference": "it is the probability that chosen wins",
    "tie": "it says whether neither is better",
}


def _refusal(part: str, found: str) -> RefusedError:
    return RefusedError(
        Reason.BAD_PREFERENCE,
        f"{part} {found}; {_MEANINGS[part]} (another column of that name is left out with "
        "data.ignore_columns)",
    )


def compare_sides(
    chosen: Iterable[int], rejected: Sequence[int], *, probability: float, margin: float
) -> list[Comparison]:
    """Compare each chosen response with each rejected one.

    Below a probability of one half, the rejected response is the better one.

    Raises:
        RefusedError: there is a margin, and the chosen side does not win.
    """
    if margin and probability <= 0.5:
        raise RefusedError(
            Reason.BAD_MARGIN,
            f"margin is {margin:g}, and chosen wins with a probability of only {probability:g}",
        )
    pairs = [(one, other) for one in chosen for other in rejected]
    if probability < 0.5:
        pairs, probability = [(other, one) for one, other in pairs], 1 - probability
    return [
        Comparison(better=better, worse=worse, margin=margin, probability=probability)
        for better, worse in pairs
    ]


def compare_ranks(ranks: Sequence[float], margin: float) -> list[Comparison]:
    """Compare all responses by their ranks, 1 the best."""
    return _compare_all([-rank for rank in ranks], margin)


def compare_scores(scores: Sequence[float], margin: float) -> list[Comparison]:
    """Compare all responses by their scores; the higher one is better, and equal ones tie."""
    return _compare_all(scores, margin)


def _compare_all(utilities: Sequence[float], margin: float) -> list[Comparison]:
    found = []
    for i, j in combinations(range(len(utilities)), 2):
        if are_equal(utilities[i], utilities[j]):
            found.append(Comparison(better=i, worse=j, probability=0.5))
        else:
            better, worse = (i, j) if utilities[i] > utilities[j] else (j, i)
            found.append(Comparison(better=better, worse=worse, margin=margin))
    return found


def are_equal(left: float, right: float) -> bool:
    """Return whether two scores are equal but for rounding."""
    return math.isclose(left, right, rel_tol=SAME, abs_tol=SAME)


def refuse_contradiction(ranks: Sequence[float], scores: Sequence[float]) -> None:
    """Refuse ranks and scores that order two responses in opposite ways.

    Raises:
        RefusedError: they do.
    """
    for i, j in combinations(range(len(ranks)), 2):
        if are_equal(scores[i], scores[j]):
            continue
        if (ranks[i] - ranks[j]) * (scores[i] - scores[j]) > 0:
            raise RefusedError(
                Reason.BAD_PREFERENCE,
                f"ranks and scores disagree on the responses {i} and {j}; leave one of the columns "
                "out with data.ignore_columns",
            )
