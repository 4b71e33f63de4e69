import pytest
from scored import ranked, scored

from rm_ray.evaluation.length import describe_length
from rm_ray.evaluation.scored_groups import ScoredGroups


def test_a_model_that_rewards_length_is_detected():
    tokens = [3, 9, 4, 8, 5], [7, 2, 6, 1, 10]
    pairs = scored(
        [float(t) for t in tokens[0]],
        [float(t) for t in tokens[1]],
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )
    found = describe_length(pairs)
    assert found["reward_with_tokens"] == pytest.approx(1)
    assert found["margin_with_difference"] == pytest.approx(1)
    assert found["prefers_longer"] == 1
    assert found["accuracy_where_chosen_is_longer"] == 1
    assert found["accuracy_where_chosen_is_shorter"] == 0
    assert found["chosen_is_longer"] == 2 / 5


def test_equal_rewards_at_different_lengths_are_half_correct():
    pairs = scored(
        [1.0, 1.0, 2.0, 0.0],
        [1.0, 1.0, 0.0, 2.0],
        chosen_tokens=[9, 2, 5, 5],
        rejected_tokens=[3, 8, 5, 5],
    )
    found = describe_length(pairs)
    assert found["accuracy_where_chosen_is_longer"] == 0.5
    assert found["accuracy_where_chosen_is_shorter"] == 0.5
    assert found["chosen_is_longer"] == 0.5
    assert found["prefers_longer"] is None


def test_constant_rewards_prefer_no_length():
    assert describe_length(scored([1.0], [0.0]))["prefers_longer"] is None


def test_a_labelled_tie_counts_only_where_no_side_is_better():
    columns = {"chosen_tokens": [9, 2, 9], "rejected_tokens": [3, 8, 4]}
    pairs = scored([1.0, 1.0, 0.0], [0.0, 0.0, 2.0], **columns, probabilities=[1, 1, 0.5])
    found = describe_length(pairs)
    assert found["chosen_is_longer"] == 0.5
    assert found["accuracy_where_chosen_is_longer"] == 1.0
    assert found["prefers_longer"] == pytest.approx(1 / 3)
    swapped = scored(
        [1.0, 1.0, 2.0],
        [0.0, 0.0, 0.0],
        chosen_tokens=[9, 2, 4],
        rejected_tokens=[3, 8, 9],
        probabilities=[1, 1, 0.5],
    )
    assert describe_length(swapped) == pytest.approx(found)


def test_a_list_weighs_as_much_as_a_pair():
    four = ranked([4, 3, 2, 1], [4.0, 3.0, 2.0, 1.0], tokens=[9, 8, 7, 6])
    pair = ranked([2, 1], [2.0, 1.0], tokens=[3, 4])
    found = describe_length(ScoredGroups.join([four, pair]).pairs)
    assert found["chosen_is_longer"] == pytest.approx(0.5)
    assert found["prefers_longer"] == pytest.approx(0.5)


def test_nothing_is_known_without_comparisons():
    assert set(describe_length(scored([], [])).values()) == {None}
