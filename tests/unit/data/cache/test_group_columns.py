import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.data.cache.group_columns import (
    COLUMNS,
    PER_COMPARISON,
    PER_GROUP,
    PER_RESPONSE,
    GroupColumns,
    binary_entropy,
)
from rm_ray.data.cache.group_tokens import GroupLengths

Group = dict[str, Any]

numbers = st.integers(0, 9)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Draw a group's columns as lists."""
    size, compared = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    ragged = {**dict.fromkeys(PER_RESPONSE, size), **dict.fromkeys(PER_COMPARISON, compared)}
    return {
        **{name: draw(numbers) for name in PER_GROUP},
        **{name: draw(st.lists(numbers, min_size=n, max_size=n)) for name, n in ragged.items()},
        "num_responses": size,
        "num_comparisons": compared,
    }


def columns_of(groups: list[Group]) -> GroupColumns:
    """Join the columns of groups by loops."""
    per_group = {name: [group[name] for group in groups] for name in PER_GROUP}
    ragged = {
        name: [value for group in groups for value in group[name]]
        for name in (*PER_RESPONSE, *PER_COMPARISON)
    }
    return GroupColumns.of({**per_group, **ragged})


def as_lists(columns: GroupColumns) -> dict[str, list[float]]:
    return {name: getattr(columns, name).tolist() for name in COLUMNS}


@given(st.lists(groups(), min_size=1, max_size=6), st.data())
def test_selected_groups_take_their_responses_and_comparisons_along(
    groups: list[Group], data: st.DataObject
):
    some = data.draw(st.lists(st.sampled_from(range(len(groups))), max_size=8))

    selected = columns_of(groups)[np.array(some, dtype=np.int64)]

    assert as_lists(selected) == as_lists(columns_of([groups[i] for i in some]))
    for name, kind in COLUMNS.items():
        assert getattr(selected, name).dtype == kind, name


@given(st.lists(groups(), max_size=6))
def test_every_response_and_comparison_knows_its_group(groups: list[Group]):
    columns = columns_of(groups)

    assert len(columns) == len(groups)
    of_responses = [i for i, group in enumerate(groups) for _ in group["length"]]
    of_comparisons = [i for i, group in enumerate(groups) for _ in group["better"]]
    assert columns.response_group.tolist() == of_responses
    assert columns.comparison_group.tolist() == of_comparisons


def test_compared_responses_are_numbered_over_all_groups():
    columns = GroupColumns.of(
        {
            "num_responses": [3, 1, 2],
            "num_comparisons": [2, 0, 1],
            "prefix_length": [1, 1, 1],
            "prompt_length": [1, 1, 1],
            "length": [3] * 6,
            "score": [0.0] * 6,
            "better": [2, 0, 1],
            "worse": [1, 1, 0],
            "weight": [0.5, 0.5, 1.0],
            "margin": [0.0] * 3,
            "probability": [1.0] * 3,
        }
    )

    better, worse = columns.responses_compared()

    assert better.tolist() == [2, 0, 5]
    assert worse.tolist() == [1, 1, 4]
    assert columns.lengths.starts.tolist() == [0, 3, 4]


def test_the_first_response_of_a_plain_pair_is_the_better():
    lengths = GroupLengths.of_pairs(
        chosen=np.array([3, 4]), rejected=np.array([5, 1]), prefix=np.array([2, 0])
    )

    columns = GroupColumns.of_pairs(lengths, np.array([0.5, 0.0]))

    assert as_lists(columns) | {"score": None} == {
        "num_responses": [2, 2],
        "num_comparisons": [1, 1],
        "prefix_length": [2, 0],
        "prompt_length": [2, 0],
        "length": [3, 5, 4, 1],
        "score": None,
        "better": [0, 0],
        "worse": [1, 1],
        "weight": [1.0, 1.0],
        "margin": [0.5, 0.0],
        "probability": [1.0, 1.0],
    }
    assert np.isnan(columns.score).tolist() == [True] * 4
    assert GroupColumns.of_pairs(lengths).margin.tolist() == [0.0, 0.0]
    for name, kind in COLUMNS.items():
        assert getattr(columns, name).dtype == kind, name


def test_sure_labels_allow_no_loss_and_a_tie_allows_no_less_than_a_coin():
    entropies = binary_entropy(np.array([1.0, 0.5, 0.75, 0.0]))
    expected = [0, math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0]
    assert entropies.tolist() == pytest.approx(expected, abs=1e-15)


@given(st.floats(0.5, 1), st.floats(-5, 5))
def test_no_rewards_give_less_loss_than_the_labels_entropy(p: float, lead: float):
    loss = p * math.log1p(math.exp(-lead)) + (1 - p) * math.log1p(math.exp(lead))
    assert loss >= binary_entropy(np.array([p]))[0] - 1e-12


def test_a_group_s_entropy_is_that_of_its_comparisons_by_weight():
    columns = GroupColumns.of(
        {
            **{name: [0, 0, 0] for name in PER_GROUP},
            "num_responses": [2, 1, 3],
            "num_comparisons": [1, 0, 2],
            "length": [1] * 6,
            "score": [0] * 6,
            "better": [0, 0, 1],
            "worse": [1, 1, 2],
            "weight": [1, 0.25, 0.75],
            "margin": [0, 0, 0],
            "probability": [1, 0.5, 1],
        }
    )
    assert columns.label_entropy.tolist() == pytest.approx([0, 0, 0.25 * math.log(2)])
