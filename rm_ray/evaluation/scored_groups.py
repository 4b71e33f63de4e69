"""Rewards of groups of responses, and the comparisons among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rm_ray.evaluation.scored_pairs import ScoredPairs


@dataclass(frozen=True, kw_only=True)
class ScoredGroups:
    """Rewards and labels of G groups, each of one prompt's responses.

    Shapes: R = responses, C = comparisons. A group's responses stand together, in the order of the
    groups; a group may have no comparison.
    """

    num_groups: int
    rewards: np.ndarray
    """``[R]``."""
    tokens: np.ndarray
    """``[R]`` tokens of each conversation."""
    response_group: np.ndarray
    """``[R]`` group of each response, 0 to G - 1, ascending."""
    scores: np.ndarray
    """``[R]`` labelled scores, higher for better responses; NaN where there is none."""
    better: np.ndarray
    """``[C]`` indices into ``rewards``; of a tie, either side."""
    worse: np.ndarray
    """``[C]`` indices into ``rewards``."""
    group: np.ndarray
    """``[C]`` group of each comparison."""
    weights: np.ndarray
    """``[C]``; a group's weigh 1 together."""
    margins: np.ndarray
    """``[C]`` required margins."""
    probabilities: np.ndarray
    """``[C]`` the label's probability that ``better`` is better, in [0.5, 1]; 0.5 is a tie."""

    @classmethod
    def one(
        cls,
        *,
        rewards: Sequence[float],
        tokens: Sequence[int],
        better: Sequence[int],
        worse: Sequence[int],
        weights: Sequence[float] | None = None,
        margins: Sequence[float] | None = None,
        probabilities: Sequence[float] | None = None,
        scores: Sequence[float] | None = None,
    ) -> ScoredGroups:
        """Return a single group.

        Its comparisons weigh the same, require no margin and have a sure label, unless given;
        ``weights`` are relative.
        """
        num_responses, num_comparisons = len(rewards), len(better)
        relative = _column(weights, 1.0, num_comparisons)
        return cls(
            num_groups=1,
            rewards=np.asarray(rewards, dtype=np.float64),
            tokens=np.asarray(tokens, dtype=np.int64),
            response_group=np.zeros(num_responses, dtype=np.int64),
            scores=_column(scores, np.nan, num_responses),
            better=np.asarray(better, dtype=np.int64),
            worse=np.asarray(worse, dtype=np.int64),
            group=np.zeros(num_comparisons, dtype=np.int64),
            weights=relative / relative.sum() if num_comparisons else relative,
            margins=_column(margins, 0.0, num_comparisons),
            probabilities=_column(probabilities, 1.0, num_comparisons),
        )

    @classmethod
    def of(cls, pairs: ScoredPairs) -> ScoredGroups:
        """Return each plain pair as a group of its own: chosen and rejected response."""
        assert (pairs.weights == 1).all(), "the comparisons of a list belong to one group"
        count = len(pairs)
        return cls(
            num_groups=count,
            rewards=np.stack([pairs.chosen_rewards, pairs.rejected_rewards], axis=1).reshape(-1),
            tokens=np.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1).reshape(-1),
            response_group=np.repeat(np.arange(count), 2),
            scores=np.full(2 * count, np.nan),
            better=2 * np.arange(count),
            worse=2 * np.arange(count) + 1,
            group=np.arange(count),
            weights=pairs.weights,
            margins=pairs.margins,
            probabilities=pairs.probabilities,
        )

    @classmethod
    def join(cls, parts: Sequence[ScoredGroups]) -> ScoredGroups:
        """Concatenate the groups of all parts."""
        columns = {name: [vars(part)[name] for part in parts] for name in _COLUMNS}
        groups = np.cumsum([0, *(part.num_groups for part in parts)])
        responses = np.cumsum([0, *(len(part.rewards) for part in parts)])
        for names, firsts in ((_GROUPS, groups), (_RESPONSES, responses)):
            for name in names:
                moved = zip(columns[name], firsts[:-1], strict=True)
                columns[name] = [column + first for column, first in moved]
        joined = {name: np.concatenate(arrays) for name, arrays in columns.items()}
        return cls(num_groups=int(groups[-1]), **joined)

    def __len__(self) -> int:
        """Return the number of groups."""
        return self.num_groups

    def __getitem__(self, groups: np.ndarray) -> ScoredGroups:
        """Return the groups at the given indices, in their order, or where a mask holds."""
        chosen = np.arange(self.num_groups)[groups]
        responses, response_group = _rows_of(self.response_group, chosen, self.num_groups)
        comparisons, group = _rows_of(self.group, chosen, self.num_groups)
        old = np.searchsorted(self.response_group, chosen)
        moved = (np.searchsorted(response_group, np.arange(len(chosen))) - old)[group]
        return ScoredGroups(
            num_groups=len(chosen),
            rewards=self.rewards[responses],
            tokens=self.tokens[responses],
            response_group=response_group,
            scores=self.scores[responses],
            better=self.better[comparisons] + moved,
            worse=self.worse[comparisons] + moved,
            group=group,
            weights=self.weights[comparisons],
            margins=self.margins[comparisons],
            probabilities=self.probabilities[comparisons],
        )

    @property
    def pairs(self) -> ScoredPairs:
        """The comparisons, one row each."""
        return ScoredPairs(
            chosen_rewards=self.rewards[self.better],
            rejected_rewards=self.rewards[self.worse],
            margins=self.margins,
            chosen_tokens=self.tokens[self.better],
            rejected_tokens=self.tokens[self.worse],
            weights=self.weights,
            probabilities=self.probabilities,
            groups=self.group,
        )


_COLUMNS = tuple(name for name in ScoredGroups.__annotations__ if name != "num_groups")
_GROUPS, _RESPONSES = ("response_group", "group"), ("better", "worse")
"""Columns that hold numbers of groups and of responses."""


def _column(values: Sequence[float] | None, default: float, count: int) -> np.ndarray:
    return np.full(count, default) if values is None else np.asarray(values, dtype=np.float64)


def _rows_of(
    owners: np.ndarray, groups: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of each of the groups in turn, and the position in ``groups`` of each row."""
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(num_groups + 1))
    counts = np.diff(bounds)[groups]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return (
        order[np.repeat(bounds[:-1][groups], counts) + within],
        np.repeat(np.arange(len(groups)), counts),
    )
