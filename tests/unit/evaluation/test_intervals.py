import math

import numpy as np
import plain_figures
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rm_ray.evaluation.intervals import clustered_interval, mean_interval, t95, wilson_interval


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Newcombe (1998), table I: method 3, at 95%.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_matches_published_values(successes, count, low, high):
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_contains_the_share_and_its_ends_solve_the_score_equation(case):
    successes, count = case
    low, high = wilson_interval(successes, count)
    share = successes / count
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-6 < end < 1 - 1e-6:
            distance = abs(share - end)
            assert distance == pytest.approx(
                1.959964 * math.sqrt(end * (1 - end) / count), abs=1e-9
            )


def test_the_interval_of_nothing_is_zero_to_one():
    nothing = np.zeros(0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert clustered_interval(nothing, nothing, nothing) == (0.0, 1.0)
    assert mean_interval(nothing) == mean_interval(np.array([0.7])) == (0.0, 1.0)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60))
def test_independent_values_of_weight_one_have_wilson_s_interval_bit_for_bit(values):
    found = clustered_interval(np.array(values), np.ones(len(values)), np.arange(len(values)))
    assert found == wilson_interval(sum(values), len(values))
    assert found == plain_figures.wilson_interval(sum(values), len(values))


@given(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30),
    st.integers(2, 6),
)
def test_copies_in_a_group_add_no_certainty(values, copies):
    """K equal values of weight 1/K in each of G groups say as much as G values."""
    count = len(values)
    found = clustered_interval(
        np.repeat(values, copies),
        np.full(count * copies, 1 / copies),
        np.repeat(np.arange(count), copies),
    )
    one_each = wilson_interval(sum(values), count)
    assert found == pytest.approx(one_each, abs=1e-9)


def test_the_effective_number_is_that_of_the_variance_between_groups():
    by_group = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1], [0, 0, 1]]
    values, groups = np.array(by_group, dtype=float).reshape(-1), np.repeat(np.arange(7), 3)
    means = [sum(each) / 3 for each in by_group]
    share = sum(means) / 7
    variance = sum((each - share) ** 2 for each in means) / 6 / 7
    number = share * (1 - share) / variance
    assert 7 < number < 21
    expected = wilson_interval(share * number, number)
    weights = np.full(21, 1 / 3)
    assert clustered_interval(values, weights, groups) == pytest.approx(expected)
    order = np.random.default_rng(0).permutation(21)
    shuffled = clustered_interval(values[order], weights[order], 100 - groups[order])
    assert shuffled == pytest.approx(expected)


def test_groups_that_all_agree_are_no_more_certain_than_as_many_independent_values():
    values, groups = np.tile([1.0, 0.0], 10), np.repeat(np.arange(10), 2)
    assert clustered_interval(values, np.full(20, 0.5), groups) == wilson_interval(5.0, 10)


def test_a_single_group_counts_as_one_value():
    found = clustered_interval(np.array([1.0, 0.0]), np.array([0.5, 0.5]), np.zeros(2))
    assert found == wilson_interval(0.5, 1)


@pytest.mark.parametrize("within", [0.0, 1.0])
def test_intervals_cover_the_truth_as_often_as_they_say(within):
    """Lists of 4, whose comparisons are independent, or lean one way list by list."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(400):
        lean = rng.beta(2, 1, (60, 1)) if within else np.full((60, 1), 2 / 3)
        values = (rng.random((60, 6)) < lean).astype(float)
        groups = np.repeat(np.arange(60), 6)
        low, high = clustered_interval(values.reshape(-1), np.full(360, 1 / 6), groups)
        covered.append(low <= 2 / 3 <= high)
        low, high = mean_interval(values.mean(axis=1))
        covered.append(low <= 2 / 3 <= high)
    assert 0.92 < np.mean(covered) < 0.98


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # Abramowitz and Stegun (1964), table 26.10
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042)],
)
def test_the_quantile_of_t_is_the_published_one(degrees, quantile):
    assert t95(degrees) == pytest.approx(quantile, rel=1.4e-3)
    assert t95(10**6) == pytest.approx(1.959964, abs=1e-5)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
@example([1.0, np.nextafter(1, 0)])  # of which the mean is rounded to 1
@example([0.0, 3e-162])  # so little variance that the square of the effective number is infinite
def test_the_interval_of_a_mean_lies_in_0_to_1_and_has_room_for_one_more_value(values):
    low, high = mean_interval(np.array(values))
    for more in (0.0, 1.0):
        assert low - 1e-9 <= np.mean([*values, more]) <= high + 1e-9
    assert low >= 0 and high <= 1


def test_values_that_hardly_differ_do_not_pin_the_mean():
    low, high = mean_interval(np.array([0.6, 0.6, 0.600001]))
    assert low < 0.46 and high > 0.69
    low, high = mean_interval(np.array([0.6, 0.600001]))
    assert low < 0.41 and high > 0.73


def _taus_of_lists(rng: np.random.Generator, count: int, responses: int, noise: float):
    """Kendall's tau, as a share, of rewards that are labels with noise."""
    rewards = np.arange(responses) + rng.normal(0, noise, (count, responses))
    better, worse = np.triu_indices(responses, 1)
    return (rewards[:, worse] > rewards[:, better]).mean(axis=1)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
@pytest.mark.parametrize(("responses", "noise"), [(3, 1.0), (4, 1.5), (9, 3.0)])
def test_the_interval_of_a_mean_tau_covers_it_however_few_lists_there_are(count, responses, noise):
    rng = np.random.default_rng(0)
    truth = _taus_of_lists(rng, 100_000, responses, noise).mean()
    bounds = [mean_interval(_taus_of_lists(rng, count, responses, noise)) for _ in range(800)]
    covered = np.mean([low <= truth <= high for low, high in bounds])
    assert covered > 0.93
    if count == 30:  # and is not wide for nothing
        assert covered < 0.985


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_the_interval_of_a_share_of_lists_covers_it_too(count, share):
    """Of the best of K, which is right or wrong in each list."""
    rng = np.random.default_rng(0)
    values = (rng.random((800, count)) < share).astype(float)
    assert np.mean([low <= share <= high for low, high in map(mean_interval, values)]) > 0.92
