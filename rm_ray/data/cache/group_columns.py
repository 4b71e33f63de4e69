"""The columns of comparison groups, which tables, schemas and micro-batches iterate over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rm_ray.data.cache.group_tokens import GroupLengths, ragged_arange, starts_of

PER_GROUP = {
    "num_responses": np.int32,
    "num_comparisons": np.int32,
    "prefix_length": np.int32,
    "prompt_length": np.int32,
}
"""Columns ``[N]`` and their numpy types."""

PER_RESPONSE = {"length": np.int32, "score": np.float32}
"""Columns ``[R]``."""

PER_COMPARISON = {
    "better": np.int32,
    "worse": np.int32,
    "weight": np.float32,
    "margin": np.float32,
    "probability": np.float32,
}
"""Columns ``[C]``."""

COLUMNS = {**PER_GROUP, **PER_RESPONSE, **PER_COMPARISON}


@dataclass(frozen=True, kw_only=True)
class GroupColumns:
    """The columns of N groups with R responses and C comparisons, apart from token ids.

    ``length`` ``[R]`` counts the tokens of a whole conversation, of which the first
    ``prefix_length`` are those of all its group's conversations, and the first ``prompt_length``
    come before the response. ``better`` and ``worse`` ``[C]`` are positions in the group.
    ``weight`` ``[C]`` sums to 1 over a group with comparisons; ``probability`` is that of
    ``better`` winning, 0.5 for a tie. ``score`` ``[R]`` is NaN for a response without one.
    """

    num_responses: np.ndarray
    num_comparisons: np.ndarray
    prefix_length: np.ndarray
    prompt_length: np.ndarray
    length: np.ndarray
    score: np.ndarray
    better: np.ndarray
    worse: np.ndarray
    weight: np.ndarray
    margin: np.ndarray
    probability: np.ndarray

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> GroupColumns:
        """Return the columns, cast to their types."""
        return cls(**{name: np.asarray(columns[name], dtype=t) for name, t in COLUMNS.items()})

    @classmethod
    def of_pairs(cls, lengths: GroupLengths, margins: np.ndarray | None = None) -> GroupColumns:
        """Return the columns of P pairs with these lengths; the first response is the better."""
        ones = np.ones(len(lengths))
        return cls.of(
            {
                "num_responses": lengths.num_responses,
                "num_comparisons": ones,
                "prefix_length": lengths.prefix,
                "prompt_length": lengths.prefix,
                "length": lengths.conversations,
                "score": np.full(len(lengths.conversations), np.nan),
                "better": 0 * ones,
                "worse": ones,
                "weight": ones,
                "margin": 0 * ones if margins is None else margins,
                "probability": ones,
            }
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.num_responses)

    def __getitem__(self, groups: np.ndarray) -> GroupColumns:
        """Return the columns of the selected groups."""
        responses = self.lengths.responses_of(groups)
        compared = ragged_arange(self._first_comparisons[groups], self.num_comparisons[groups])
        by_kind = ((PER_GROUP, groups), (PER_RESPONSE, responses), (PER_COMPARISON, compared))
        return GroupColumns(
            **{name: getattr(self, name)[taken] for kind, taken in by_kind for name in kind}
        )

    @cached_property
    def _first_comparisons(self) -> np.ndarray:
        return starts_of(self.num_comparisons)

    @cached_property
    def lengths(self) -> GroupLengths:
        """Token counts of all groups."""
        return GroupLengths(
            num_responses=self.num_responses,
            prefix=self.prefix_length,
            conversations=self.length,
        )

    @property
    def comparison_group(self) -> np.ndarray:
        """Position of each comparison's group: ``[C]``."""
        return np.repeat(np.arange(len(self)), self.num_comparisons)

    @property
    def response_group(self) -> np.ndarray:
        """Position of each response's group: ``[R]``."""
        return np.repeat(np.arange(len(self)), self.num_responses)

    @property
    def label_entropy(self) -> np.ndarray:
        """The least loss that a group's labels allow, ``[N]``: 0 unless some are soft or ties."""
        entropy = self.weight * binary_entropy(self.probability)
        return np.bincount(self.comparison_group, weights=entropy, minlength=len(self))

    def responses_compared(self) -> tuple[np.ndarray, np.ndarray]:
        """Return better and worse as numbers of responses: each ``[C]``, in 0 .. R - 1."""
        first = np.repeat(self.lengths.starts, self.num_comparisons)
        return first + self.better, first + self.worse


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Return the entropy of labels that are right with these probabilities, in nats: ``[C]``."""
    p = np.asarray(probability, dtype=np.float64)
    sides = [np.where(q > 0, -q * np.log(np.where(q > 0, q, 1)), 0) for q in (p, 1 - p)]
    return sides[0] + sides[1]
