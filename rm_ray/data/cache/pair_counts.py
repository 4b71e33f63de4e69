"""What a manifest counts of the pairs of a build."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa

from rm_ray.data.cache.overlap import (
    count_contradictions,
    count_duplicates,
    join_keys,
    pair_up,
)
from rm_ray.data.cache.token_parts import TokenParts
from rm_ray.data.rows.column_readings import ColumnReading, sum_up

_COLUMNS = ("source", "chosen_ids", "rejected_ids", "fragment", "reading")


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Counts over the accepted rows of a build."""

    num_pairs: int
    num_tokens: int
    """Tokens of both conversations of all pairs."""
    by_source: dict[str, int]
    duplicates: int
    contradictions: int
    readings: tuple[ColumnReading, ...]
    """How the rows of each fragment were read."""


def count_pairs(parts: TokenParts) -> PairCounts:
    """Count pairs, their tokens, sources and repeats, and sum up how their columns were read."""
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
    """Add the rows of each reading to those of its fragment."""
    numbered = pa.table({"fragment": batch["fragment"], "reading": batch["reading"]})
    counted = numbered.group_by(["fragment", "reading"]).aggregate([([], "count_all")])
    for each in counted.to_pylist():
        counts = readings.setdefault(each["fragment"], Counter())
        counts[each["reading"]] += each["count_all"]


def _count_repeats(parts: TokenParts) -> tuple[int, int]:
    """Count duplicates and contradictions; memory: about 128 bytes for each pair."""
    names = ("chosen_hash", "rejected_hash")
    batches = list(parts.scan(names, refused=False))
    chosen, rejected = (join_keys(batch[name] for batch in batches) for name in names)
    pairs, swaps = pair_up(chosen, rejected), pair_up(rejected, chosen)
    return count_duplicates(pairs), count_contradictions(pairs, swaps)
