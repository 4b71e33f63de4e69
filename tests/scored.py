"""Scored pairs and groups for tests of the evaluation."""

from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.evaluation.scored_pairs import ScoredPairs

REWARDS = st.integers(-6, 6).map(lambda n: n / 2)
"""Few values, so that many are equal."""


def scored(chosen: list[float], rejected: list[float], **columns: list[float]) -> ScoredPairs:
    """Return pairs without margins, all of the same length, unless columns say otherwise."""
    count = len(chosen)
    default = {
        "margins": [0.0] * count,
        "chosen_tokens": [5] * count,
        "rejected_tokens": [5] * count,
    }
    named = {"chosen_rewards": chosen, "rejected_rewards": rejected, **default, **columns}
    return ScoredPairs(**{name: np.array(values) for name, values in named.items()})


def ranked(utilities: list[float], rewards: list[float], **about: Any) -> ScoredGroups:
    """Return one group with all comparisons that the utilities imply; equal ones tie."""
    better, worse, probabilities = [], [], []
    for one, other in combinations(range(len(utilities)), 2):
        is_swapped = utilities[one] < utilities[other]
        better.append(other if is_swapped else one)
        worse.append(one if is_swapped else other)
        probabilities.append(0.5 if utilities[one] == utilities[other] else 1.0)
    given = {"tokens": [5] * len(rewards), "probabilities": probabilities, **about}
    return ScoredGroups.one(rewards=rewards, better=better, worse=worse, **given)


@st.composite
def single_groups(draw: st.DrawFn) -> ScoredGroups:
    """Draw a group of 1 to 5 responses: any of the comparisons, sure or not, some with scores."""
    count = draw(st.integers(1, 5))
    rewards = draw(st.lists(REWARDS, min_size=count, max_size=count))
    possible = [*combinations(range(count), 2)]
    chosen = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    sides = [pair[:: draw(st.sampled_from([1, -1]))] for pair in chosen]
    size = {"min_size": len(sides), "max_size": len(sides)}
    some_score = st.one_of(st.just(float("nan")), REWARDS)
    return ScoredGroups.one(
        rewards=rewards,
        tokens=draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)),
        better=[one for one, _ in sides],
        worse=[other for _, other in sides],
        weights=draw(st.lists(st.integers(1, 3).map(float), **size)),
        margins=draw(st.lists(st.sampled_from([0.0, 0.5]), **size)),
        probabilities=draw(st.lists(st.sampled_from([0.5, 0.75, 1.0]), **size)),
        scores=draw(st.lists(some_score, min_size=count, max_size=count)),
    )


several_groups = st.lists(single_groups(), min_size=1, max_size=8)
