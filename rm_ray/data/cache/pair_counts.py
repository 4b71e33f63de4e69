"""Counts over the pairs of a build, for its manifest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from rm_ray.data.cache.overlap import (
    combine_keys,
    count_contradictions,
    count_duplicates,
    join_keys,
)
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.rows.column_readings import ColumnReading, sum_up

_COLUMNS = ("source", "chosen_ids", "rejected_ids", "fragment", "reading")


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Counts over the accepted rows of a build."""

    num_pairs: int
    num_tokens: int
    """Tokens of all pairs, both conversations."""
    by_source: dict[str, int]
    duplicates: int
    contradictions: int
    readings: tuple[ColumnReading, ...]
    """One reading per fragment."""


def count_pairs(parts: TokenParts) -> PairCounts:
    """Count pairs, tokens, sources and repeats, and sum up the column readings."""
    by_source: Counter[str] = Counter()
    readings: dict[int, Counter[str]] = {}
    num_tokens = 0
    for batch in parts.scan(_COLUMNS, refused=False):
        _count_readings(batch, readings)
        by_source.update(batch.column("source").to_pylist())
        num_tokens += len(batch.column("chosen_ids").flatten())
        num_tokens += len(batch.column("rejected_ids").flatten())
    duplicates, contradictions = _count_repeats(parts)
    return PairCounts(
        num_pairs=by_source.total(),
        num_tokens=num_tokens,
        by_source=dict(sorted(by_source.items())),
        duplicates=duplicates,
        contradictions=contradictions,
        readings=tuple(
            sum_up(parts.origins[number], counts) for number, counts in sorted(readings.items())
        ),
    )


def _count_readings(batch: pa.RecordBatch, readings: dict[int, Counter[str]]) -> None:
    """Add a batch to the number of rows per reading of each fragment."""
    numbered = pa.table({"fragment": batch["fragment"], "reading": batch["reading"]})
    counted = numbered.group_by(["fragment", "reading"]).aggregate([([], "count_all")])
    for each in counted.to_pylist():
        counts = readings.setdefault(each["fragment"], Counter())
        counts[each["reading"]] += each["count_all"]


def _count_repeats(parts: TokenParts) -> tuple[int, int]:
    """Count duplicates and contradictions; needs about 128 bytes of memory per pair."""
    names = ("chosen_hash", "rejected_hash")
    batches = list(parts.scan(names, refused=False))
    chosen, rejected = (join_keys(batch[name] for batch in batches) for name in names)
    pairs, swaps = combine_keys(chosen, rejected), combine_keys(rejected, chosen)
    return count_duplicates(pairs), count_contradictions(pairs, swaps)
