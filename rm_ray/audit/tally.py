"""Counts over all rows: sources, refusals, lengths, languages, and how simple rules do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.audit.baselines import RULES
from rm_ray.evaluation.intervals import wilson_interval

MOST_NAMES, MOST_WRITER_PAIRS = 1_000, 100_000
"""Sources and pairs of writers that are counted by name; any more are ``OTHERS``."""

OTHERS = "(others)"

WriterPairs = Counter[tuple[str, str]]
"""Pairs by what wrote the better and the worse response."""

LENGTHS = ("prompt", "better", "worse")

_BINS_PER_DOUBLING, _NUM_BINS = 4, 128


class Tally:
    """Counts of rows, of which only sums are kept."""

    def __init__(self) -> None:
        self.rows = 0
        self.refused: Counter[str] = Counter()
        self.readings: dict[int, Counter[str]] = {}
        self._by_source: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._writers: tuple[WriterPairs, WriterPairs] = (Counter(), Counter())
        self._rules: dict[tuple[str, str], np.ndarray] = {}
        self._lengths = {name: np.zeros(_NUM_BINS, dtype=np.int64) for name in LENGTHS}
        self._words = dict.fromkeys(LENGTHS, 0.0)

    @property
    def num_read(self) -> int:
        """Rows that were not refused."""
        return self.rows - self.refused.total()

    def add(self, table: pa.Table) -> None:
        """Count rows that have the schema of ``row_facts``."""
        self.rows += len(table)
        reasons = table["reason"].to_pylist()
        self.refused.update(reason for reason in reasons if reason)
        table = table.filter(pa.array([not reason for reason in reasons]))
        readings = zip(table["fragment"].to_pylist(), table["reading"].to_pylist(), strict=True)
        for fragment, reading in readings:
            self.readings.setdefault(fragment, Counter())[reading] += 1
        sources = []
        for source in table["source"].to_pylist():
            sources.append(_name(self._by_source, source, MOST_NAMES, OTHERS))
            self._by_source[sources[-1]] += 1
        self._languages.update(table["language"].to_pylist())
        halves = table["content"].to_pylist()  # so that repeated rows are in the same half
        for writers, content in zip(table["writers"].to_pylist(), halves, strict=True):
            if writers:
                counts, pair = self._writers[content % 2], (writers[0], writers[1])
                counts[_name(counts, pair, MOST_WRITER_PAIRS, (OTHERS, OTHERS))] += 1
        for name in RULES:
            both = [table[f"{name}_{part}"].to_numpy() for part in ("won", "of")]
            for source, *credit in zip(sources, *both, strict=True):
                sums = self._rules.setdefault((name, source), np.zeros(2))
                sums += credit
        for name in LENGTHS:
            words = table[f"{name}_words"].to_numpy().astype(np.float64)
            words = words[~np.isnan(words)]
            self._words[name] += float(words.sum())
            self._lengths[name] += np.bincount(_bin(words), minlength=_NUM_BINS)

    def to_json(self) -> dict[str, Any]:
        """Return the counts, shares with 95% intervals, and lengths."""
        return {
            "rows": self.rows,
            "rows_read": self.num_read,
            "rows_refused": dict(self.refused.most_common()),
            "by_source": dict(self._by_source.most_common()),
            "languages": dict(self._languages.most_common()),
            "lengths": {name: self._describe_length(name) for name in LENGTHS},
            "rules": {name: self._describe_rule(name) for name in RULES},
            "writers": describe_writers(*self._writers),
        }

    def _describe_rule(self, name: str) -> dict[str, Any]:
        by_source = {
            source: describe_share(*self._rules[name, source].tolist())
            for source in self._by_source
            if self._rules[name, source][1]
        }
        sums = [sums for (rule, _), sums in self._rules.items() if rule == name]
        won, of = np.sum([np.zeros(2), *sums], axis=0).tolist()
        return {"rule": RULES[name], **describe_share(won, of), "by_source": by_source}

    def _describe_length(self, name: str) -> dict[str, Any]:
        counts = self._lengths[name]
        total = int(counts.sum())
        if not total:
            return {"rows": 0}
        ranks = np.searchsorted(np.cumsum(counts), np.array([0.1, 0.5, 0.9]) * total)
        quantiles = np.rint(_middle(ranks)).astype(int).tolist()
        last = int(np.flatnonzero(counts)[-1])
        return {
            "rows": total,
            "mean": self._words[name] / total,
            **dict(zip(("p10", "p50", "p90"), quantiles, strict=True)),
            "histogram": {
                "edges": np.round(_edges(np.arange(last + 2)), 1).tolist(),
                "rows": counts[: last + 1].tolist(),
            },
        }


def describe_share(won: float, of: float) -> dict[str, Any]:
    """Return a share with its 95% interval, Wilson's; the share is None of nothing."""
    low, high = wilson_interval(won, of)
    share = won / of if of else None
    return {"share": share, "share_low": low, "share_high": high, "pairs": of}


def describe_writers(one: WriterPairs, other: WriterPairs) -> dict[str, Any]:
    """Return how often each writer wins against others, and what that alone predicts.

    The rule that the writer with the higher share is better is made from one half of the rows and
    judged on the other one, both ways: among writers that win at random it is right half of the
    time, however few pairs each has.
    """
    right = of = 0
    for made_from, judged_on in ((one, other), (other, one)):
        shares = {name: won / of for name, (won, of) in _count_wins(made_from).items()}
        for (better, worse), count in judged_on.items():
            lead = shares.get(better, 0.5) - shares.get(worse, 0.5)
            right += count if lead > 0 else 0
            of += count if lead else 0
    wins = sorted(_count_wins(one + other).items(), key=lambda each: -each[1][1])
    return {
        "rule": "the response of the writer that wins more often is better",
        **describe_share(right, of),
        "by_writer": {name: describe_share(*both) for name, both in wins[:20]},
        "pairs_beyond_names": (one + other)[OTHERS, OTHERS],
    }


def _count_wins(pairs: WriterPairs) -> dict[str, tuple[int, int]]:
    """Return in how many pairs of two writers each is better, and in how many it is."""
    won: Counter[str] = Counter()
    of: Counter[str] = Counter()
    for (better, worse), count in pairs.items():
        if better != worse:
            won[better] += count
            of[better] += count
            of[worse] += count
    return {name: (won[name], of[name]) for name in of}


def _name(known: Mapping[Any, int], name: Any, most: int, others: Any) -> Any:
    """Return a name, or that of others if there are too many."""
    return name if name in known or len(known) < most else others


def _bin(words: np.ndarray) -> np.ndarray:
    bins = np.floor(_BINS_PER_DOUBLING * np.log2(words + 1)).astype(np.int64)
    within: np.ndarray = np.minimum(bins, _NUM_BINS - 1)
    return within


def _edges(bins: np.ndarray) -> np.ndarray:
    """Return the least number of words of each bin."""
    edges: np.ndarray = 2 ** (bins / _BINS_PER_DOUBLING) - 1
    return edges


def _middle(bins: np.ndarray) -> np.ndarray:
    return _edges(bins + 0.5)
