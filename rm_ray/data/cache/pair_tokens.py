"""Token ids of pairs, with the shared prefix stored once: prefix, chosen tail, rejected tail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class TokenCounts(NamedTuple):
    """Token counts of some pairs: both conversations, distinct tokens, and computed positions."""

    both: int
    distinct: int
    computed: int


@dataclass(frozen=True, kw_only=True)
class PairLengths:
    """Token counts of N pairs: each conversation and the shared prefix; all ``[N]``."""

    chosen: np.ndarray
    rejected: np.ndarray
    prefix: np.ndarray

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.chosen)

    def __getitem__(self, pairs: np.ndarray) -> PairLengths:
        """Return the lengths of the selected pairs."""
        return PairLengths(
            chosen=np.asarray(self.chosen[pairs]),
            rejected=np.asarray(self.rejected[pairs]),
            prefix=np.asarray(self.prefix[pairs]),
        )

    @property
    def longest(self) -> np.ndarray:
        """Tokens of each pair's longer conversation."""
        longest: np.ndarray = np.maximum(self.chosen, self.rejected)
        return longest

    @property
    def distinct(self) -> np.ndarray:
        """Tokens of each pair, counting the shared prefix once."""
        distinct: np.ndarray = self.chosen.astype(np.int64) + self.rejected - self.prefix
        return distinct

    @property
    def attended(self) -> np.ndarray:
        """Query-key products of causal attention over each pair, computing the prefix once."""
        return self.attended_within(None)

    def attended_within(self, window: int | None) -> np.ndarray:
        """Return these products if a query sees at most ``window`` keys, including itself."""
        chosen, rejected, prefix = (
            _attended(lengths.astype(np.int64), window)
            for lengths in (self.chosen, self.rejected, self.prefix)
        )
        attended: np.ndarray = chosen + rejected - prefix
        return attended


def _attended(lengths: np.ndarray, window: int | None) -> np.ndarray:
    """Return the query-key products of sequences of these lengths."""
    within = lengths if window is None else np.minimum(lengths, window)
    attended: np.ndarray = within * (within + 1) // 2 + (lengths - within) * within
    return attended


@dataclass(frozen=True, kw_only=True)
class PairTokens:
    """Token ids of P pairs, in order.

    ``tokens`` ``[T]`` int32 holds the shared prefix of each pair, the rest of its chosen
    conversation, and the rest of its rejected one.
    """

    tokens: np.ndarray
    lengths: PairLengths

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """Start of each pair in ``tokens``: ``[P]``."""
        distinct = self.lengths.distinct
        starts: np.ndarray = np.cumsum(distinct) - distinct
        return starts

    def chosen(self, pair: int) -> np.ndarray:
        """Return the ids of a pair's chosen conversation."""
        start = self.starts[pair]
        return self.tokens[start : start + self.lengths.chosen[pair]]

    def rejected(self, pair: int) -> np.ndarray:
        """Return the ids of a pair's rejected conversation."""
        start, prefix = self.starts[pair], self.lengths.prefix[pair]
        tail = start + self.lengths.chosen[pair]
        end = tail + self.lengths.rejected[pair] - prefix
        return np.concatenate([self.tokens[start : start + prefix], self.tokens[tail:end]])


def ragged_arange(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the runs ``start, start + 1, ...``, concatenated: ``[sum(lengths)]``."""
    ends = np.cumsum(lengths)
    offsets: np.ndarray = np.repeat(starts - (ends - lengths), lengths)
    return offsets + np.arange(ends[-1] if len(ends) else 0)


def join_pairs(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> PairTokens:
    """Join pairs of conversations, storing common prefixes once; every tail keeps a token."""
    prefixes = [min(common_prefix(a, b), len(a) - 1, len(b) - 1) for a, b in pairs]
    tokens = [
        np.array([*a, *b[prefix:]], dtype=np.int32)
        for (a, b), prefix in zip(pairs, prefixes, strict=True)
    ]
    return PairTokens(
        tokens=np.concatenate(tokens),
        lengths=PairLengths(
            chosen=np.array([len(a) for a, _ in pairs], dtype=np.int32),
            rejected=np.array([len(b) for _, b in pairs], dtype=np.int32),
            prefix=np.array(prefixes, dtype=np.int32),
        ),
    )


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of leading ids that two sequences share."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
