"""Columns beside a pair that say, unlike its labels, that the rejected response is better."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rm_ray.data.rows.column_names import plain_name
from rm_ray.data.rows.columns import RowColumns

_SIDE = re.compile(r"(?<![a-z])chosen(?![a-z])")
_RATES = re.compile(r"_?(?:(?:overall|average|avg|mean)_)?(?:scores?|ratings?|rewards?)_?")
"""A name without its side; scores of toxicity and the like may be better if lower."""
_WINNER = re.compile(r"(?:.*_)?winner(?:_.*)?")

_Names = tuple[str, ...]
_Both = tuple[str, str]


def find_reversal(row: Mapping[str, Any], columns: RowColumns, ignore: Sequence[str]) -> str:
    """Return what says that the worse side of a row is the better one; empty if nothing does.

    It is rated higher (``score_chosen`` below ``score_rejected``), or ``winner`` is what the worse
    side is called (``rejected``, or the value of ``rejected_model``). ``columns`` are those that
    the sides have been taken from; those to ``ignore`` say nothing.
    """
    used = columns.used
    if "chosen" not in used or "rejected" not in used:
        return ""
    preference = columns.peek("preference") if "preference" in used else 1.0
    if preference == 0.5 or ("tie" in used and columns.peek("tie")):
        return ""
    is_swapped = (preference < 0.5) != ("rejected" in plain_name(used["chosen"]))
    rated, others, winners = _lay_out(tuple(row), tuple(ignore), is_swapped)
    for better, worse in rated:
        if _is_number(row[better]) and _is_number(row[worse]) and row[better] < row[worse]:
            return f"'{better}' is below '{worse}'"
    for name in winners:
        value = row[name]
        if not isinstance(value, str) or not value.strip():
            continue
        if plain_name(value) == ("chosen" if is_swapped else "rejected"):
            return f"'{name}' is '{value}'"
        named = next((worse for better, worse in others if row[worse] == value != row[better]), "")
        if named:
            return f"'{name}' is what '{named}' is"
    return ""


@lru_cache(maxsize=1_024)
def _lay_out(
    names: _Names, ignore: _Names, is_swapped: bool
) -> tuple[tuple[_Both, ...], tuple[_Both, ...], _Names]:
    """Return the columns that rate both sides, the others that both sides have, and the winners.

    Of two columns, the better side's is the first. Cached, because most rows of a source have the
    same columns.
    """
    by_plain_name = {plain_name(name): name for name in names if name not in ignore}
    rated: list[_Both] = []
    others: list[_Both] = []
    for plain, name in by_plain_name.items():
        other = by_plain_name.get(_SIDE.sub("rejected", plain), name)
        if other != name:
            both = rated if _RATES.fullmatch(_SIDE.sub("", plain)) else others
            both.append((other, name) if is_swapped else (name, other))
    winners = tuple(name for plain, name in by_plain_name.items() if _WINNER.fullmatch(plain))
    return tuple(rated), tuple(others), winners


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
