import numpy as np
from scored import scored

from rm_ray.evaluation.scored_pairs import ScoredPairs


def test_a_plain_pair_weighs_one_is_sure_and_stands_alone():
    pairs = scored([1.0, 2.0], [0.0, 3.0])
    assert pairs.weights.tolist() == [1.0, 1.0]
    assert pairs.probabilities.tolist() == [1.0, 1.0]
    assert pairs.groups.tolist() == [0, 1]
    assert pairs.reward_margins.tolist() == [1.0, -1.0]


def test_equal_rewards_and_labelled_ties_are_half_right():
    pairs = scored([1.0, 1.0, 0.0, 5.0], [0.0, 1.0, 1.0, 0.0], probabilities=[1, 1, 0.75, 0.5])
    assert pairs.credits.tolist() == [1.0, 0.5, 0.0, 0.5]
    assert pairs.is_tie.tolist() == [False, False, False, True]


def test_a_reward_that_is_no_number_is_wrong():
    assert scored([float("nan")], [0.0]).credits.tolist() == [0.0]


def test_joined_parts_keep_their_groups_apart():
    weights = [0.5, 0.5, 1.0]
    one = scored([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], weights=weights, groups=[7, 7, 3])
    joined = ScoredPairs.join([one, scored([], []), scored([4.0], [0.0]), one])
    assert joined.chosen_rewards.tolist() == [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0]
    assert joined.weights.tolist() == [*weights, 1.0, *weights]
    groups = joined.groups.tolist()
    assert groups[0] == groups[1] and groups[4] == groups[5]
    assert len(set(groups)) == 5


def test_pairs_are_taken_by_index_or_mask():
    pairs = scored([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], groups=[5, 5, 6])
    assert pairs[np.array([2, 0])].chosen_rewards.tolist() == [3.0, 1.0]
    taken = pairs[np.array([False, True, True])]
    assert taken.groups.tolist() == [5, 6]
    assert len(taken) == 2
