"""Token ids of comparison groups, with the shared prefix stored once: prefix, tail 1 .. tail K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rm_ray.config.sections.batch import Layout


class TokenCounts(NamedTuple):
    """Token counts of some groups: all conversations, distinct tokens, and computed positions."""

    all: int
    distinct: int
    computed: int


@dataclass(frozen=True, kw_only=True)
class GroupLengths:
    """Token counts of N groups with R responses.

    ``num_responses`` and ``prefix`` (the tokens that all conversations of a group begin with) are
    ``[N]``; ``conversations`` ``[R]`` are the lengths of the whole conversations, prefix included.
    """

    num_responses: np.ndarray
    prefix: np.ndarray
    conversations: np.ndarray

    @classmethod
    def of_pairs(cls, chosen: np.ndarray, rejected: np.ndarray, prefix: np.ndarray) -> GroupLengths:
        """Return the lengths of N pairs; all arguments are ``[N]``."""
        both = np.stack([chosen, rejected], axis=1).reshape(-1)
        return cls(num_responses=np.full(len(prefix), 2), prefix=prefix, conversations=both)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.num_responses)

    def __getitem__(self, groups: np.ndarray) -> GroupLengths:
        """Return the lengths of the selected groups."""
        return GroupLengths(
            num_responses=np.asarray(self.num_responses[groups]),
            prefix=np.asarray(self.prefix[groups]),
            conversations=np.asarray(self.conversations[self.responses_of(groups)]),
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first response of each group: ``[N]``."""
        return starts_of(self.num_responses)

    def responses_of(self, groups: np.ndarray) -> np.ndarray:
        """Return the numbers of all responses of these groups, in order."""
        return ragged_arange(self.starts[groups], self.num_responses[groups])

    def sum_by_group(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of each group's values: ``[R]`` -> ``[N]``."""
        return sum_runs(values, self.num_responses)

    @property
    def all(self) -> np.ndarray:
        """Tokens of each group, in all its conversations."""
        return self.sum_by_group(self.conversations)

    @property
    def longest(self) -> np.ndarray:
        """Tokens of each group's longest conversation."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        longest: np.ndarray = np.maximum.reduceat(self.conversations, self.starts)
        return longest

    @property
    def distinct(self) -> np.ndarray:
        """Tokens of each group, counting the shared prefix once."""
        repeated = (self.num_responses.astype(np.int64) - 1) * self.prefix
        distinct: np.ndarray = self.all - repeated
        return distinct

    @property
    def attended(self) -> np.ndarray:
        """Query-key products of causal attention over each group, computing the prefix once."""
        return self.attended_within(None)

    def attended_within(self, window: int | None) -> np.ndarray:
        """Return these products if a query sees at most ``window`` keys, including itself."""
        conversations = _attended(self.conversations.astype(np.int64), window)
        prefix = _attended(self.prefix.astype(np.int64), window)
        repeated = (self.num_responses.astype(np.int64) - 1) * prefix
        attended: np.ndarray = self.sum_by_group(conversations) - repeated
        return attended


def _attended(lengths: np.ndarray, window: int | None) -> np.ndarray:
    """Return the query-key products of sequences of these lengths."""
    within = lengths if window is None else np.minimum(lengths, window)
    attended: np.ndarray = within * (within + 1) // 2 + (lengths - within) * within
    return attended


@dataclass(frozen=True, kw_only=True)
class GroupTokens:
    """Token ids of G groups, in order.

    ``tokens`` ``[T]`` int32 holds the shared prefix of each group, then the rest of each of its
    conversations.
    """

    tokens: np.ndarray
    lengths: GroupLengths

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.lengths)

    @cached_property
    def own_lengths(self) -> np.ndarray:
        """Tokens that each response adds to its group, the first one with the prefix: ``[R]``."""
        lengths = self.lengths
        own = lengths.conversations - np.repeat(
            lengths.prefix.astype(np.int64), lengths.num_responses
        )
        own[lengths.starts] += lengths.prefix
        return own

    @cached_property
    def own_starts(self) -> np.ndarray:
        """Start of these tokens in ``tokens``: ``[R]``."""
        return starts_of(self.own_lengths)

    def conversation(self, group: int, response: int) -> np.ndarray:
        """Return the ids of a conversation, by its group and position in the group."""
        first = self.lengths.starts[group]
        start, own = self.own_starts[first + response], self.own_lengths[first + response]
        tail = self.tokens[start : start + own]
        if not response:
            return tail
        begin = self.own_starts[first]
        return np.concatenate([self.tokens[begin : begin + self.lengths.prefix[group]], tail])

    def conversations(self, group: int) -> list[np.ndarray]:
        """Return the ids of all conversations of a group."""
        count = int(self.lengths.num_responses[group])
        return [self.conversation(group, response) for response in range(count)]


def count_positions(lengths: GroupLengths, layout: Layout) -> int:
    """Return the positions that groups take in one forward pass."""
    if layout == "padded":
        return len(lengths.conversations) * int(lengths.conversations.max())
    return int(lengths.distinct.sum())


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Return where runs of these lengths start if they follow each other: ``[N]`` int64."""
    starts: np.ndarray = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts


def sum_runs(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the sums of consecutive runs of these lengths: ``[N]`` int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    totals: np.ndarray = sums[ends] - sums[ends - lengths]
    return totals


def ragged_arange(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the runs ``start, start + 1, ...``, concatenated: ``[sum(lengths)]``."""
    ends = np.cumsum(lengths)
    offsets: np.ndarray = np.repeat(starts - (ends - lengths), lengths)
    return offsets + np.arange(ends[-1] if len(ends) else 0)


def join_groups(groups: Sequence[Sequence[Sequence[int]]]) -> GroupTokens:
    """Join groups of conversations, storing common prefixes once; every tail keeps a token."""
    prefixes = [shared_prefix(conversations) for conversations in groups]
    tokens = [
        np.concatenate([[*first], *(ids[prefix:] for ids in others)]).astype(np.int32)
        for (first, *others), prefix in zip(groups, prefixes, strict=True)
    ]
    return GroupTokens(
        tokens=np.concatenate(tokens),
        lengths=GroupLengths(
            num_responses=np.array([len(each) for each in groups], dtype=np.int32),
            prefix=np.array(prefixes, dtype=np.int32),
            conversations=np.array([len(ids) for each in groups for ids in each], dtype=np.int32),
        ),
    )


def shared_prefix(conversations: Sequence[Sequence[int]]) -> int:
    """Return the common prefix's length, which leaves every conversation at least one token."""
    first, *others = conversations
    shared = min((common_prefix(first, ids) for ids in others), default=len(first))
    return min(shared, *(len(ids) - 1 for ids in (first, *conversations)))


def shared_prefix_of_arrays(conversations: Sequence[np.ndarray]) -> int:
    """Return the same length as ``shared_prefix``, for arrays of ids."""
    first, *others = conversations
    shared = min(map(len, conversations)) - 1
    for ids in others:
        differ = np.flatnonzero(first[:shared] != ids[:shared])
        shared = int(differ[0]) if len(differ) else shared
    return shared


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the number of leading ids that two sequences share."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
