import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import scored, several_groups

from rm_ray.evaluation.scored_groups import ScoredGroups


def rows_of(groups: ScoredGroups) -> list[tuple]:
    """Return what each group says, in plain loops."""
    found = []
    for g in range(groups.num_groups):
        responses = [i for i in range(len(groups.rewards)) if groups.response_group[i] == g]
        comparisons = [c for c in range(len(groups.group)) if groups.group[c] == g]
        columns = (groups.weights, groups.margins, groups.probabilities)
        found.append(
            (
                [(groups.rewards[i], groups.tokens[i], repr(groups.scores[i])) for i in responses],
                [
                    (
                        responses.index(groups.better[c]),
                        responses.index(groups.worse[c]),
                        *(column[c] for column in columns),
                    )
                    for c in comparisons
                ],
            )
        )
    return found


def test_a_single_group_weighs_one():
    group = ScoredGroups.one(
        rewards=[1.0, 2.0, 3.0], tokens=[4, 5, 6], better=[2, 1], worse=[0, 0], weights=[3.0, 1.0]
    )
    assert group.weights.tolist() == [0.75, 0.25]
    assert group.margins.tolist() == [0.0, 0.0]
    assert group.probabilities.tolist() == [1.0, 1.0]
    assert np.isnan(group.scores).all()
    assert (len(group), len(group.pairs)) == (1, 2)


def test_a_response_alone_has_no_comparison():
    group = ScoredGroups.one(rewards=[1.0], tokens=[4], better=[], worse=[], scores=[0.5])
    assert (len(group), len(group.pairs), group.scores.tolist()) == (1, 0, [0.5])


@given(several_groups)
def test_joined_groups_say_what_each_said(parts):
    joined = ScoredGroups.join(parts)
    assert rows_of(joined) == [row for part in parts for row in rows_of(part)]
    assert joined.num_groups == len(parts)
    assert (np.diff(joined.response_group) >= 0).all()


@given(several_groups, st.data())
def test_groups_are_taken_in_the_order_asked_for(parts, data):
    joined = ScoredGroups.join(parts)
    chosen = data.draw(st.lists(st.integers(0, len(parts) - 1), max_size=6))
    taken = joined[np.array(chosen, dtype=np.int64)]
    assert rows_of(taken) == [rows_of(parts[i])[0] for i in chosen]


@given(several_groups, st.data())
def test_a_mask_takes_groups_too(parts, data):
    mask = data.draw(st.lists(st.booleans(), min_size=len(parts), max_size=len(parts)))
    taken = ScoredGroups.join(parts)[np.array(mask)]
    assert rows_of(taken) == [
        rows_of(part)[0] for part, wanted in zip(parts, mask, strict=True) if wanted
    ]


def test_comparisons_may_come_in_any_order():
    joined = ScoredGroups.join(
        [
            ScoredGroups.one(rewards=[1.0, 0.0], tokens=[1, 2], better=[0], worse=[1]),
            ScoredGroups.one(rewards=[3.0, 2.0], tokens=[3, 4], better=[1], worse=[0]),
        ]
    )
    names = ("better", "worse", "group", "weights", "margins", "probabilities")
    reverse = {name: vars(joined)[name][::-1] for name in names}
    shuffled = ScoredGroups(**{**vars(joined), **reverse})
    assert rows_of(shuffled[np.array([1, 0])]) == rows_of(joined)[::-1]


@given(several_groups)
def test_pairs_are_the_comparisons_of_the_responses(parts):
    joined = ScoredGroups.join(parts)
    pairs = joined.pairs
    for c in range(len(pairs)):
        assert pairs.chosen_rewards[c] == joined.rewards[joined.better[c]]
        assert pairs.rejected_rewards[c] == joined.rewards[joined.worse[c]]
        assert pairs.chosen_tokens[c] == joined.tokens[joined.better[c]]
        assert pairs.rejected_tokens[c] == joined.tokens[joined.worse[c]]
    assert pairs.groups.tolist() == joined.group.tolist()
    assert pairs.weights.sum() == pytest.approx(len(set(joined.group)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_pairs_come_back_bit_for_bit(dtype):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 9)).astype(dtype)
    pairs = scored(chosen, rejected, margins=rng.random(9), chosen_tokens=np.arange(9))
    back = ScoredGroups.of(pairs).pairs
    for name, column in vars(pairs).items():
        assert vars(back)[name].tobytes() == column.tobytes()
        assert vars(back)[name].dtype == column.dtype
