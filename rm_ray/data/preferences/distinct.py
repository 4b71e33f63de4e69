"""The distinct responses of a row, and the comparisons among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from rm_ray.data.rows.groups import Comparison
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.turns import Message, without_notes


def identify(response: Message) -> str:
    """Return a text that identical responses share, whatever their metadata."""
    return json.dumps(without_notes(response), sort_keys=True)


def merge_identical(
    responses: Sequence[Message], comparisons: Sequence[Comparison], *, may_tie: bool
) -> tuple[list[int], tuple[Comparison, ...]]:
    """Return the positions of the distinct responses, and the comparisons among those.

    Each comparison is kept once. If identical responses ``may_tie``, their tie is left out.

    Raises:
        RefusedError: identical responses are compared with each other.
    """
    places: dict[str, int] = {}
    kept: list[int] = []
    place_of: list[int] = []
    for i, response in enumerate(responses):
        key = identify(response)
        if key not in places:
            places[key] = len(kept)
            kept.append(i)
        place_of.append(places[key])
    if len(kept) == len(responses):
        return kept, tuple(comparisons)
    merged: dict[Comparison, None] = {}
    for each in comparisons:
        better, worse = place_of[each.better], place_of[each.worse]
        if better == worse and not (may_tie and each.is_tie):
            raise RefusedError(
                Reason.IDENTICAL_RESPONSES,
                f"the responses {min(each.better, each.worse)} and {max(each.better, each.worse)}",
            )
        if better != worse:
            if each.is_tie:
                better, worse = min(better, worse), max(better, worse)
            merged[replace(each, better=better, worse=worse)] = None
    return kept, tuple(merged)
