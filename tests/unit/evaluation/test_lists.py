import math
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scored import REWARDS, ranked, scored, several_groups, single_groups

from rm_ray.evaluation.intervals import mean_interval
from rm_ray.evaluation.lists import (
    best_of_k,
    best_of_k_chance,
    count_compared,
    describe_lists,
    describe_scores,
    is_list,
    kendall_tau,
    list_metrics,
    spearman,
)
from rm_ray.evaluation.scored_groups import ScoredGroups

paired_values = st.integers(3, 8).flatmap(
    lambda k: st.tuples(*[st.lists(REWARDS, min_size=k, max_size=k)] * 2)
)


def expected_best(group: ScoredGroups) -> float:
    """Return the share of the best of one group, in plain loops; NaN if it does not qualify."""
    compared, beaten = set(), set()
    for c in range(len(group.group)):
        better, worse = group.better[c], group.worse[c]
        compared |= {better, worse}
        beaten |= {worse} if group.probabilities[c] > 0.5 else set()
    best = compared - beaten
    if len(compared) < 3 or not beaten or not best:
        return math.nan
    highest = max(group.rewards[i] for i in compared)
    top = [i for i in compared if group.rewards[i] == highest]
    return sum(i in best for i in top) / len(top)


def expected_tau(group: ScoredGroups) -> float:
    agreement = labels = rewards = 0.0
    compared = set()
    for c in range(len(group.group)):
        better, worse = group.better[c], group.worse[c]
        compared |= {better, worse}
        weight, decided = group.weights[c], group.probabilities[c] > 0.5
        margin = group.rewards[better] - group.rewards[worse]
        agreement += weight * decided * (1 if margin > 0 else -1 if margin < 0 else 0)
        labels += weight * decided
        rewards += weight * (margin != 0)
    if len(compared) < 3 or not labels:
        return math.nan
    return agreement / math.sqrt(labels * rewards) if rewards else 0.0


@given(several_groups)
def test_figures_of_each_list_are_those_of_explicit_loops(parts):
    groups = ScoredGroups.join(parts)
    assert best_of_k(groups) == pytest.approx([expected_best(p) for p in parts], nan_ok=True)
    assert kendall_tau(groups) == pytest.approx([expected_tau(p) for p in parts], nan_ok=True)


@pytest.mark.parametrize(
    ("utilities", "rewards", "tau", "rho"),
    [
        ([1, 2, 3, 4, 5], [2.0, 1.0, 4.0, 3.0, 5.0], 0.6, 0.8),
        ([1, 1, 2, 3, 3, 4], [0.5, 1.5, 1.5, 0.0, 2.0, 2.0],
         0.3846153846153847, 0.4545454545454545),
        ([3, 3, 1, 2], [1.0, 1.0, 1.0, 4.0], -0.25819888974716115, -0.2721655269759087),
        ([1, 2, 2, 2, 5, 6, 7], [3.0, -1.0, 2.5, 2.5, 0.0, 7.0, 7.0],
         0.27036903521793754, 0.4340395297554284),
    ],
)  # fmt: skip
def test_rank_correlations_are_those_of_scipy(utilities, rewards, tau, rho):
    """The expected values come from ``kendalltau(variant="b")`` and ``spearmanr``, scipy 1.17.1."""
    group = ranked(utilities, rewards, scores=utilities)
    assert kendall_tau(group)[0] == pytest.approx(tau, abs=1e-12)
    assert spearman(group) == pytest.approx(rho, abs=1e-12)


@given(paired_values)
def test_tau_over_all_comparisons_is_kendall_s_formula_for_ties(case):
    """Its terms count ties by the sizes of runs of equal values, not by comparisons."""
    utilities, rewards = case
    assume(len(set(utilities)) > 1)
    pairs = [*combinations(range(len(utilities)), 2)]
    concordance = sum(
        int(np.sign(utilities[i] - utilities[j]) * np.sign(rewards[i] - rewards[j]))
        for i, j in pairs
    )
    ties = [sum(n * (n - 1) / 2 for n in Counter(side).values()) for side in (utilities, rewards)]
    left, right = (len(pairs) - tied for tied in ties)
    expected = concordance / math.sqrt(left * right) if right else 0.0
    assert kendall_tau(ranked(utilities, rewards))[0] == pytest.approx(expected, abs=1e-12)


@given(paired_values)
def test_spearman_is_pearson_s_correlation_of_counted_ranks(case):
    scores, rewards = case
    found = spearman(ranked(scores, rewards, scores=scores))
    ranks = [
        [sum(other < one for other in side) + (side.count(one) + 1) / 2 for one in side]
        for side in (scores, rewards)
    ]
    if len(set(scores)) == 1 or len(set(rewards)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)


def test_a_perfect_order_scores_one_and_its_reverse_minus_one():
    forward = ranked([4, 3, 2, 1], [9.0, 5.0, 2.0, 0.0])
    backward = ranked([4, 3, 2, 1], [0.0, 2.0, 5.0, 9.0])
    assert kendall_tau(ScoredGroups.join([forward, backward])).tolist() == [1.0, -1.0]
    assert best_of_k(ScoredGroups.join([forward, backward])).tolist() == [1.0, 0.0]


def test_equal_highest_rewards_share_the_best():
    groups = ScoredGroups.join(
        [
            ranked([3, 2, 1], [5.0, 5.0, 0.0]),
            ranked([3, 3, 1], [5.0, 5.0, 5.0]),
            ranked([3, 3, 1], [1.0, 5.0, 0.0]),
        ]
    )
    assert best_of_k(groups) == pytest.approx([1 / 2, 2 / 3, 1])
    assert best_of_k_chance(groups) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


@given(single_groups())
def test_chance_is_the_mean_over_all_orders_of_the_rewards(group):
    assume(is_list(group)[0])
    count = len(group.rewards)
    shares = [
        best_of_k(ScoredGroups(**{**vars(group), "rewards": np.array(order, dtype=float)}))[0]
        for order in permutations(range(count))
    ]
    compared = count_compared(group)[0]
    if compared == count:
        assert best_of_k_chance(group)[0] == pytest.approx(np.mean(shares), nan_ok=True)


def test_pairs_ties_and_circles_are_no_lists_with_a_best():
    pair = ranked([2, 1], [1.0, 0.0])
    all_tied = ranked([1, 1, 1], [3.0, 2.0, 1.0])
    alone = ScoredGroups.one(rewards=[1.0], tokens=[5], better=[], worse=[])
    only_two_compared = ScoredGroups.one(
        rewards=[1.0, 2.0, 3.0], tokens=[5] * 3, better=[0], worse=[1]
    )
    circle = ScoredGroups.one(
        rewards=[3.0, 2.0, 1.0], tokens=[5] * 3, better=[0, 1, 2], worse=[1, 2, 0]
    )
    groups = ScoredGroups.join([pair, all_tied, alone, only_two_compared, circle])
    assert np.isnan(best_of_k(groups)).all()
    assert np.isnan(best_of_k_chance(groups)).all()
    assert is_list(groups).tolist() == [False, False, False, False, True]
    assert np.isnan(kendall_tau(groups)).tolist() == [True, True, True, True, False]
    assert kendall_tau(groups)[4] == pytest.approx(1 / 3)
    assert describe_lists(groups[np.arange(4)]) is None
    found = describe_lists(groups)
    assert (found["lists"], found["best_of_k"]) == (1, None)


def test_a_model_without_preference_agrees_with_nothing():
    assert kendall_tau(ranked([3, 2, 1], [0.5, 0.5, 0.5])).tolist() == [0.0]


@given(several_groups, st.sampled_from([0.5, 2.0]), st.integers(-3, 3))
def test_scale_and_shift_of_rewards_change_nothing(parts, scale, shift):
    groups = ScoredGroups.join(parts)
    moved = ScoredGroups(**{**vars(groups), "rewards": scale * groups.rewards + shift})
    np.testing.assert_array_equal(best_of_k(moved), best_of_k(groups))
    np.testing.assert_array_equal(kendall_tau(moved), kendall_tau(groups))
    assert spearman(moved) == spearman(groups)


@given(several_groups)
def test_reversed_rewards_reverse_tau(parts):
    groups = ScoredGroups.join(parts)
    reverse = ScoredGroups(**{**vars(groups), "rewards": -groups.rewards})
    np.testing.assert_allclose(kendall_tau(reverse), -kendall_tau(groups), atol=1e-12)


def test_figures_are_means_over_lists_with_their_intervals():
    parts = [ranked([3, 2, 1], rewards) for rewards in permutations([1.0, 2.0, 3.0])]
    groups = ScoredGroups.join([*parts, ranked([2, 1], [0.0, 1.0])])
    found = describe_lists(groups)
    taus = kendall_tau(groups)[:6]
    assert found["lists"] == 6
    assert found["best_of_k"] == pytest.approx(1 / 3) == found["best_of_k_chance"]
    assert found["kendall_tau"] == pytest.approx(0.0)
    low, high = mean_interval((taus + 1) / 2)
    assert (found["kendall_tau_low"], found["kendall_tau_high"]) == (2 * low - 1, 2 * high - 1)
    assert found["kendall_tau_low"] < 0 < found["kendall_tau_high"]
    assert (found["best_of_k_low"], found["best_of_k_high"]) == mean_interval(best_of_k(groups)[:6])


def test_scores_are_compared_over_prompts():
    alone = [
        ScoredGroups.one(rewards=[reward], tokens=[5], better=[], worse=[], scores=[score])
        for reward, score in ((0.1, 1.0), (0.4, 2.0), (0.3, 3.0), (9.0, math.nan))
    ]
    groups = ScoredGroups.join(alone)
    assert describe_scores(groups) == {"responses": 3, "spearman": pytest.approx(0.5)}
    assert describe_scores(ScoredGroups.of(scored([1.0], [0.0]))) is None


def test_metrics_of_a_run_have_lists_only_if_there_are_some():
    pair, triple = ranked([2, 1], [1.0, 0.0]), ranked([3, 2, 1], [2.0, 1.0, 3.0])
    assert list_metrics(pair, "eval/rm") == {}
    assert list_metrics(ScoredGroups.join([pair, triple]), "eval/rm") == {
        "eval/rm/best_of_k": 0.0,
        "eval/rm/kendall_tau": pytest.approx(-1 / 3),
    }


def test_a_reward_that_is_no_number_is_no_best_and_agrees_with_nothing():
    groups = ScoredGroups.join(
        [ranked([3, 2, 1], [math.nan, 1.0, 0.0]), ranked([3, 2, 1], [math.nan] * 3)]
    )
    assert best_of_k(groups) == pytest.approx([0, 1 / 3])
    assert kendall_tau(groups) == pytest.approx([1 / math.sqrt(3), 0])
