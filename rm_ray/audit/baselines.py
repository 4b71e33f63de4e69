"""Rules that need no model: how often each of them names the better response."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_ray.audit.text.messages import read_text
from rm_ray.data.preferences.numbers import unwrap_json
from rm_ray.data.rows.column_names import plain_name
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.row_readings import RowReading
from rm_ray.data.rows.turns import texts_of

RULES = {
    "longer": "the longer response is better",
    "first": "the response that the row gives first is better",
    "answers": "the response that does not refuse is better",
}

_BEGINNING = 200
"""Characters of a response in which a refusal stands."""

_REFUSES = re.compile(
    r"\bi(?:(?:'|’)?m| am) (?:very |so |really )?sorry\b|\bi apologi[sz]e\b"
    r"|\bas an ai\b|\bas a language model\b|\bas an assistant\b"
    r"|\bi(?: can(?:not|(?:'|’)t)| am unable to|(?:'|’)m unable to| am not able to"
    r"|(?:'|’)m not able to| won(?:'|’)t| will not| do not feel comfortable"
    r"|(?:'|’)m not comfortable| am not comfortable| must decline)\b"
)
"""Phrases of refusals, after the list of GCG (arXiv:2307.15043, code of its evaluation)."""


@dataclass(frozen=True, kw_only=True)
class Credit:
    """How a rule does on one row, whose decided comparisons weigh 1 together."""

    won: float
    """Weight of the comparisons whose better response the rule names."""
    of: float
    """Weight of those of which it says anything."""


def credit_rules(group: Group, row: Mapping[str, Any], reading: RowReading) -> dict[str, Credit]:
    """Return how each of ``RULES`` does on a row; of ties no rule says anything."""
    texts = [read_text(response) for response in group.responses]
    lengths = [len(text) for text in texts]
    refuses = [is_refusal(text) for text in texts]
    places = _places(group, row, reading, texts)
    favours = {
        "longer": lengths,
        "first": [0] * len(texts) if places is None else [-place for place in places],
        "answers": [-int(refusal) for refusal in refuses],
    }
    decided = [each for each in group.comparisons if not each.is_tie]
    total = sum(each.weight for each in decided)
    credits = {}
    for name, values in favours.items():
        won = of = 0.0
        for each in decided:
            lead = values[each.better] - values[each.worse]
            of += each.weight / total if lead else 0.0
            won += each.weight / total if lead > 0 else 0.0
        credits[name] = Credit(won=won, of=of)
    return credits


def is_refusal(text: str) -> bool:
    """Return whether a response begins like a refusal, in English."""
    return _REFUSES.search(text[:_BEGINNING].lower()) is not None


def _places(
    group: Group, row: Mapping[str, Any], reading: RowReading, texts: list[str]
) -> list[int] | None:
    """Return where the row gives each response; None if its columns are named by the labels."""
    if "responses" in reading.used:
        return list(range(len(texts)))
    columns = reading.used.get("chosen", "").split("' and '")
    if len(columns) != 2 or len(texts) != 2 or not all(name in row for name in columns):
        return None
    first, second = (
        {part.strip() for part in texts_of([unwrap_json(row[name])])} for name in columns
    )
    better, worse = (text.strip() for text in texts)
    if better in first and worse in second:
        return [0, 1]
    return [1, 0] if better in second and worse in first else None


_WRITERS = ("model", "generator", "policy", "source", "model_name")


def find_writers(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what wrote the chosen and the rejected response, if columns of the row say so.

    They are called ``chosen_model`` and ``rejected_model``, ``model_chosen`` and so on.
    """
    by_name = {plain_name(name): value for name, value in row.items() if isinstance(value, str)}
    for writer in _WRITERS:
        for pattern in ("{}_" + writer, writer + "_{}"):
            both = [by_name.get(pattern.format(side), "") for side in ("chosen", "rejected")]
            if all(both):
                return both[0], both[1]
    return None
