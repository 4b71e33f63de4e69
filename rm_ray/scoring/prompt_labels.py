"""Rows of a held-out set -> what benchmarks need to know of each group: subset, correct answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.cache.token_table import TokenTable
from rm_ray.data.preferences.distinct import identify
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.columns import RowColumns
from rm_ray.data.rows.refusals import RefusedError
from rm_ray.data.sources import mixture
from rm_ray.data.sources.mixture import Selection
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.evaluation.held_out_set import PromptLabel
from rm_ray.scoring.conversations import parse_conversations


def read_prompt_labels(
    specs: Sequence[str], table: TokenTable, *, seed: int, rules: ColumnRules
) -> tuple[PromptLabel, ...] | None:
    """Return the labels of each group of a table, in its order; None if no file has subsets.

    The table was built, row by row, from the same sources, seed and rules.
    """
    selections = mixture.select([SourceSpec.parse(text) for text in specs], seed, rules=rules)
    if not any(_has_subsets(selection, rules) for selection in selections):
        return None
    labels = [PromptLabel()] * len(table)
    places = {
        (int(fragment), int(row)): group
        for group, (fragment, row) in enumerate(zip(table.fragment, table.row, strict=True))
    }
    for fragment, selection in enumerate(selections):
        for row, text in mixture.read_selected(selection):
            if (group := places.get((fragment, row))) is not None:
                labels[group] = label_row(json.loads(text), selection.fragment.origin, rules)
    return tuple(labels)


def _has_subsets(selection: Selection, rules: ColumnRules) -> bool:
    rows = (json.loads(text) for _, text in mixture.read_selected(selection))
    columns = (RowColumns(row, rules) for row in rows if isinstance(row, dict))
    return any(one.take("subset") is not None for one in columns)


def label_row(row: dict[str, Any], origin: str, rules: ColumnRules) -> PromptLabel:
    """Return the labels of a row that training can read."""
    try:
        parsed = parse_conversations(row, origin, rules)
    except RefusedError:  # scoring reads some rows in other ways
        return PromptLabel()
    group, _ = read_group(row, origin, rules)
    place_of = {identify(response): place for place, response in enumerate(group.responses)}
    identified = [identify(messages[-1]) for messages in parsed.messages]
    places = tuple(place_of[key] for key in identified if key in place_of)
    is_whole = len(places) == len(identified)
    return PromptLabel(
        subset=parsed.subset,
        id=parsed.id,
        num_correct=parsed.num_correct if is_whole else 0,
        places=places,
    )
