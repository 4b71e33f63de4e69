import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rm_ray.evaluation.pairwise import (
    ScoredPairs,
    calibrate,
    calibration_error,
    correlation,
    describe_length,
    find_worst,
    pairwise_metrics,
    pairwise_metrics_by,
    pairwise_report,
    wilson_interval,
)


def scored(chosen: list[float], rejected: list[float], **columns: list[float]) -> ScoredPairs:
    count = len(chosen)
    default = {
        "margins": [0.0] * count,
        "chosen_tokens": [5] * count,
        "rejected_tokens": [5] * count,
    }
    named = {"chosen_rewards": chosen, "rejected_rewards": rejected, **default, **columns}
    return ScoredPairs(**{name: np.array(values) for name, values in named.items()})


rewards = hnp.arrays(np.float64, 30, elements=st.floats(-20, 20))


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


def test_the_interval_of_no_pairs_is_zero_to_one():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_known_pairs_have_known_metrics():
    found = pairwise_metrics(scored([1.0, 2.0, 0.0, 3.0], [0.0, 2.0, 1.0, 1.0]))
    assert found["pairs"] == 4
    assert found["accuracy"] == 2.5 / 4
    assert found["ties"] == 0.25
    losses = [math.log1p(math.exp(-m)) for m in (1.0, 0.0, -1.0, 2.0)]
    assert found["loss"] == pytest.approx(sum(losses) / 4)
    assert (found["chosen_rewards"], found["rejected_rewards"]) == (1.5, 1.0)
    assert found["reward_margin"] == 0.5
    assert found["reward_std"] == pytest.approx(np.std([1, 2, 0, 3, 0, 2, 1, 1]))


@given(rewards, rewards)
def test_swapping_every_pair_reverses_accuracy_and_margin(chosen, rejected):
    ours, swapped = (
        pairwise_metrics(scored(a, b)) for a, b in ((chosen, rejected), (rejected, chosen))
    )
    assert ours["accuracy"] + swapped["accuracy"] == pytest.approx(1)
    assert ours["reward_margin"] == pytest.approx(-swapped["reward_margin"], abs=1e-12)
    assert ours["ties"] == swapped["ties"]


@given(rewards, rewards, st.lists(st.sampled_from("abc"), min_size=30, max_size=30))
def test_the_groups_add_up_to_the_whole(chosen, rejected, labels):
    pairs = scored(chosen, rejected)
    groups, whole = pairwise_metrics_by(pairs, labels), pairwise_metrics(pairs)
    assert set(groups) == set(labels)
    for name in ("accuracy", "loss", "reward_margin"):
        mean = sum(group[name] * group["pairs"] for group in groups.values()) / 30
        assert mean == pytest.approx(whole[name], abs=1e-9)


@given(rewards, rewards, st.integers(1, 40))
def test_bins_hold_every_pair_once_in_order_of_margin(chosen, rejected, num_bins):
    pairs = scored(chosen, rejected)
    bins = calibrate(pairs, num_bins=num_bins)
    assert sum(each["pairs"] for each in bins) == 30
    sizes = [(each["least_margin"], each["most_margin"]) for each in bins]
    assert sizes == sorted(sizes)
    right = sum(each["accuracy"] * each["pairs"] for each in bins)
    assert right == pytest.approx(30 * pairwise_metrics(pairs)["accuracy"])
    assert 0 <= calibration_error(bins) <= 1


def test_a_calibrated_model_has_little_error():
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0, 4, 40_000)
    right = rng.random(40_000) < 1 / (1 + np.exp(-sizes))
    pairs = scored(
        np.where(right, sizes, -sizes),
        np.zeros(40_000),
        margins=np.zeros(40_000),
        chosen_tokens=np.ones(40_000),
        rejected_tokens=np.ones(40_000),
    )
    assert calibration_error(calibrate(pairs)) < 0.02
    doubled = scored(
        2 * pairs.chosen_rewards,
        np.zeros(40_000),
        margins=np.zeros(40_000),
        chosen_tokens=np.ones(40_000),
        rejected_tokens=np.ones(40_000),
    )
    assert calibration_error(calibrate(doubled)) > 0.08


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


def test_a_tie_between_different_lengths_is_half_correct():
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


def test_constant_values_have_no_correlation():
    assert correlation(np.ones(3), np.arange(3)) is None
    assert describe_length(scored([1.0], [0.0]))["prefers_longer"] is None


def test_the_worst_pairs_are_wrong_and_in_order():
    pairs = scored([0.0, 0.0, 5.0, 0.0], [1.0, 3.0, 0.0, 0.0])
    assert find_worst(pairs, 10).tolist() == [1, 0]
    assert find_worst(pairs, 1).tolist() == [1]


def test_a_report_without_subsets_has_none():
    pairs = scored([1.0, 2.0], [0.0, 3.0])
    assert pairwise_report(pairs, ["a", "b"], ["", ""])["by_subset"] == {}
    assert set(pairwise_report(pairs, ["a", "b"], ["x", ""])["by_subset"]) == {"x", ""}
