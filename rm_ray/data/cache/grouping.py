"""Rows with one prompt -> comparison groups, in which each distinct response stands once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from rm_ray.config.sections.batch import Layout
from rm_ray.config.sections.objective import Need
from rm_ray.data.cache.group_columns import PER_COMPARISON

Compared = tuple[tuple[int, int, float, float, float], ...]
"""Better and worse (positions of responses), weight, margin and probability."""

MOST_OPEN = 64
"""Groups of a prompt that may still get new responses; beyond these, the oldest one is closed."""


@dataclass(frozen=True, kw_only=True)
class GroupLimits:
    """How large a group of rows may become, and what it must have."""

    max_responses: int
    max_tokens: int
    """Positions of a group in a micro-batch."""
    layout: Layout = "packed"
    need: Need = "labels"

    def count(self, prompt: int, own: int, longest: int, num_responses: int) -> int:
        """Return the positions of a group: its prompt's tokens and its responses' own.

        Of all its responses, ``own`` is the sum and ``longest`` the most.
        """
        if self.layout == "padded":
            return num_responses * (prompt + longest)
        return prompt + own


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """What one row says of its responses; ``keys`` tell which are the same as in other rows."""

    keys: tuple[bytes, ...]
    prompt: int
    """Tokens of the prompt."""
    tokens: tuple[int, ...]
    """Tokens of each response, without the prompt."""
    comparisons: Compared
    scores: tuple[float, ...]
    """NaN for a response without one."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> RowLabels:
        """Return the labels of an accepted cache row, with numbers as the cache stores them."""
        columns = (
            np.array(row[name], dtype=kind).tolist() for name, kind in PER_COMPARISON.items()
        )
        prompt = row["prompt_length"]
        return cls(
            keys=tuple(row["response_hashes"]),
            prompt=prompt,
            tokens=tuple(len(ids) - prompt for ids in row["ids"]),
            comparisons=tuple(zip(*columns, strict=True)),
            scores=tuple(np.array(row["score"], dtype=np.float32).tolist()),
        )


@dataclass(kw_only=True)
class PromptGroup:
    """Rows of one prompt that become a group."""

    rows: list[int] = field(default_factory=list)
    places: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Row and position in it where each distinct response first appears, in this order."""
    prompt: int = 0
    own: int = 0
    longest: int = 0

    def admits(self, row: RowLabels, limits: GroupLimits) -> bool:
        """Return whether the group stays within the limits if a row joins it."""
        added = [n for key, n in zip(row.keys, row.tokens, strict=True) if key not in self.places]
        num_responses = len(self.places) + len(added)
        if num_responses > limits.max_responses:
            return False
        prompt, longest = max(self.prompt, row.prompt), max(self.longest, *added, 0)
        positions = limits.count(prompt, self.own + sum(added), longest, num_responses)
        return positions <= limits.max_tokens

    def add(self, index: int, row: RowLabels) -> list[bytes]:
        """Add a row; return the responses that are new."""
        self.rows.append(index)
        self.prompt = max(self.prompt, row.prompt)
        added = []
        for place, (key, tokens) in enumerate(zip(row.keys, row.tokens, strict=True)):
            if key not in self.places:
                self.places[key] = index, place
                self.own += tokens
                self.longest = max(self.longest, tokens)
                added.append(key)
        return added


def divide(rows: Sequence[RowLabels], limits: GroupLimits) -> list[PromptGroup]:
    """Put each row of a prompt into the first group that admits it.

    A group that has all of the row's responses already comes before one with room for them, of
    which the last ``MOST_OPEN`` are tried. A row over the limits gets a group of its own.
    """
    groups: list[PromptGroup] = []
    unfilled: list[PromptGroup] = []
    by_response: dict[bytes, list[PromptGroup]] = {}
    for index, row in enumerate(rows):
        homes = min((by_response.get(key, []) for key in row.keys), key=len)
        group = next((g for g in homes if g.places.keys() >= set(row.keys)), None)
        if group is None:
            group = next((g for g in unfilled if g.admits(row, limits)), None)
        if group is None:
            group = PromptGroup()
            groups.append(group)
            unfilled.append(group)
        for key in group.add(index, row):
            by_response.setdefault(key, []).append(group)
        if len(unfilled) > MOST_OPEN or len(group.places) >= limits.max_responses:
            unfilled = [g for g in unfilled if len(g.places) < limits.max_responses][-MOST_OPEN:]
    return groups


@dataclass(frozen=True, kw_only=True)
class CombinedLabels:
    """The comparisons and scores of a group of K responses."""

    comparisons: Compared
    """The weights add up to 1."""
    scores: tuple[float, ...]

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The labels as columns of a cache row."""
        compared = zip(*self.comparisons, strict=True) if self.comparisons else ((),) * 5
        named = zip(PER_COMPARISON, map(list, compared), strict=True)
        return {"score": list(self.scores), **dict(named)}


def combine(rows: Sequence[RowLabels], positions: Mapping[bytes, int]) -> CombinedLabels:
    """Join what the rows of a group say; ``positions`` are those of the responses in the group.

    Each row weighs the same, and equal comparisons add their weights. A response has the mean of
    its scores. Rows of one scored response are compared by their scores.
    """
    weights: dict[tuple[int, int, float, float], float] = {}
    scores: list[list[float]] = [[] for _ in positions]
    alone: dict[int, list[float]] = {}
    for row in rows:
        places = [positions[key] for key in row.keys]
        for place, score in zip(places, row.scores, strict=True):
            if not math.isnan(score):
                scores[place].append(score)
                if len(places) == 1:
                    alone.setdefault(place, []).append(score)
        for better, worse, weight, margin, probability in row.comparisons:
            sides = places[better], places[worse]
            if probability == 0.5:  # a tie has no order
                sides = min(sides), max(sides)
            key = (*sides, margin, probability)
            weights[key] = weights.get(key, 0.0) + weight
    for key, count in _compare_alone(alone):
        weights[key] = weights.get(key, 0.0) + count
    total = math.fsum(weights.values())
    return CombinedLabels(
        comparisons=tuple(
            (better, worse, weight / total, margin, probability)
            for (better, worse, margin, probability), weight in weights.items()
        ),
        scores=tuple(math.fsum(each) / len(each) if each else math.nan for each in scores),
    )


def _compare_alone(
    alone: Mapping[int, Sequence[float]],
) -> Iterator[tuple[tuple[int, int, float, float], int]]:
    """Count how often single ratings of a response are above, below and equal to another one's."""
    ordered = {place: np.sort(np.array(scores)) for place, scores in sorted(alone.items())}
    for (left, ones), (right, others) in combinations(ordered.items(), 2):
        below, not_above = (np.searchsorted(others, ones, side) for side in ("left", "right"))
        wins, ties = int(below.sum()), int((not_above - below).sum())
        counts = (
            ((left, right, 0.0, 1.0), wins),
            ((right, left, 0.0, 1.0), len(ones) * len(others) - wins - ties),
            ((left, right, 0.0, 0.5), ties),
        )
        yield from (each for each in counts if each[1])
