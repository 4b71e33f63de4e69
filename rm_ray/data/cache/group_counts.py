"""Counts over the comparison groups of a build, for its manifest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rm_ray.data.cache.group_tokens import starts_of
from rm_ray.data.cache.overlap import (
    NO_KEYS,
    combine_keys,
    count_contradictions,
    count_duplicates,
    join_keys,
)
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.rows.column_readings import ColumnReading, sum_up

_COLUMNS = ("source", "ids", "probability", "score")


_PLACE = ("fragment", "row")

_COMPARED = ("response_hashes", "better", "worse", "probability")


@dataclass(frozen=True, kw_only=True)
class GroupCounts:
    """Counts over the accepted rows of a build."""

    num_rows: int
    """Rows that became groups."""
    num_groups: int
    num_responses: int
    num_comparisons: int
    num_ties: int
    num_scores: int
    """Responses with a score."""
    num_tokens: int
    """Tokens of all groups, in all their conversations."""
    by_source: dict[str, int]
    """Groups by source."""
    duplicates: int
    """Comparisons of rows that repeat those of earlier rows."""
    contradictions: int
    readings: tuple[ColumnReading, ...]
    """One reading per fragment."""


def count_groups(parts: TokenParts, rows: TokenParts) -> GroupCounts:
    """Count groups, comparisons, tokens, sources and repeats, and sum up the column readings.

    ``rows`` are those that became groups: ``parts`` themselves, unless they are grouped by prompt.
    """
    by_source: Counter[str] = Counter()
    readings: dict[int, Counter[str]] = {}
    first_rows: dict[int, dict[str, int]] = {}
    counts: Counter[str] = Counter()
    for batch in rows.scan((*_PLACE, "reading"), refused=False):
        _count_readings(batch, readings, first_rows)
        counts["rows"] += len(batch)
    if rows is not parts:  # grouping refuses rows too
        counts["rows"] -= sum(len(batch) for batch in parts.scan(("row",), refused=True))
    for batch in parts.scan(_COLUMNS, refused=False):
        by_source.update(batch.column("source").to_pylist())
        conversations = batch.column("ids").flatten()
        probabilities = batch.column("probability").flatten().to_numpy()
        scores = batch.column("score").flatten().to_numpy()
        counts["tokens"] += len(conversations.flatten())
        counts["responses"] += len(conversations)
        counts["comparisons"] += len(probabilities)
        counts["ties"] += int((probabilities == 0.5).sum())
        counts["scores"] += int(np.isfinite(scores).sum())
    duplicates, contradictions = _count_repeats(parts, rows)
    return GroupCounts(
        num_rows=counts["rows"],
        num_groups=by_source.total(),
        num_responses=counts["responses"],
        num_comparisons=counts["comparisons"],
        num_ties=counts["ties"],
        num_scores=counts["scores"],
        num_tokens=counts["tokens"],
        by_source=dict(sorted(by_source.items())),
        duplicates=duplicates,
        contradictions=contradictions,
        readings=tuple(
            sum_up(parts.origins[number], counts, first_rows[number])
            for number, counts in sorted(readings.items())
        ),
    )


def _count_readings(
    batch: pa.RecordBatch,
    readings: dict[int, Counter[str]],
    first_rows: dict[int, dict[str, int]],
) -> None:
    """Add a batch to the number of rows per reading of each fragment, and to the first of them."""
    numbered = pa.table({name: batch[name] for name in (*_PLACE, "reading")})
    grouped = numbered.group_by(["fragment", "reading"])
    for each in grouped.aggregate([([], "count_all"), ("row", "min")]).to_pylist():
        fragment, reading, row = each["fragment"], each["reading"], each["row_min"]
        readings.setdefault(fragment, Counter())[reading] += each["count_all"]
        firsts = first_rows.setdefault(fragment, {})
        firsts[reading] = min(firsts.get(reading, row), row)


def _count_repeats(parts: TokenParts, rows: TokenParts) -> tuple[int, int]:
    """Count duplicates and contradictions; needs about 128 bytes of memory per comparison.

    They are those of the rows, because a group has equal comparisons once.
    """
    better, worse, ties = [NO_KEYS], [NO_KEYS], [np.empty(0, dtype=bool)]
    refused = np.empty((0, 2), dtype=np.int64)
    if rows is not parts:
        places = [_places(batch) for batch in parts.scan(_PLACE, refused=True)]
        refused = np.concatenate([refused, *places])
    for batch in rows.scan((*_PLACE, *_COMPARED), refused=False):
        if len(refused):
            batch = batch.filter(pa.array(~_is_among(_places(batch), refused)))
        hashes = batch["response_hashes"]
        keys = join_keys([hashes.flatten()])
        num_responses = hashes.value_lengths().to_numpy()
        first = np.repeat(starts_of(num_responses), batch["better"].value_lengths().to_numpy())
        sides = [keys[first + batch[side].flatten().to_numpy()] for side in ("better", "worse")]
        is_tie = batch["probability"].flatten().to_numpy() == 0.5
        swapped = is_tie & (sides[0] > sides[1])  # a tie has no order
        better.append(np.where(swapped, sides[1], sides[0]))
        worse.append(np.where(swapped, sides[0], sides[1]))
        ties.append(is_tie)
    ahead, behind, is_tie = map(np.concatenate, (better, worse, ties))
    pairs, swaps = combine_keys(ahead, behind), combine_keys(behind, ahead)
    duplicates = count_duplicates(pairs[~is_tie]) + count_duplicates(pairs[is_tie])
    return duplicates, count_contradictions(pairs[~is_tie], swaps[~is_tie])


def _places(batch: pa.RecordBatch) -> np.ndarray:
    return np.stack([batch[name].to_numpy().astype(np.int64) for name in _PLACE], axis=1)


def _is_among(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return which of ``[N, 2]`` places are among the ``[M, 2]`` others: ``[N]`` bool."""
    pair = np.dtype([(name, np.int64) for name in _PLACE])
    left, right = (np.ascontiguousarray(each).view(pair).reshape(-1) for each in (places, others))
    return np.isin(left, right)
