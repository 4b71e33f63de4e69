import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scored import scored, several_groups

from rm_ray.evaluation.calibration import calibrate, calibration_error, observe, predict
from rm_ray.evaluation.pairwise import pairwise_metrics
from rm_ray.evaluation.scored_groups import ScoredGroups

rewards = hnp.arrays(np.float64, 30, elements=st.floats(-20, 20))


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
    pairs = scored(np.where(right, sizes, -sizes), np.zeros(40_000))
    assert calibration_error(calibrate(pairs)) < 0.02
    doubled = scored(2 * pairs.chosen_rewards, np.zeros(40_000))
    assert calibration_error(calibrate(doubled)) > 0.08


def test_labels_that_are_the_model_s_own_probabilities_have_no_error():
    """Drawn labels of a calibrated model err by chance; soft ones say its probability."""
    sizes = np.linspace(0, 4, 1000)
    soft = scored(sizes, np.zeros(1000), probabilities=1 / (1 + np.exp(-sizes)))
    assert calibration_error(calibrate(soft)) == pytest.approx(0, abs=1e-12)
    assert calibration_error(calibrate(scored(sizes, np.zeros(1000)))) > 0.1


def test_a_label_is_seen_from_the_side_that_the_model_prefers():
    pairs = scored(
        [2.0, 0.0, 1.0, 3.0, 0.0],
        [0.0, 2.0, 1.0, 0.0, 3.0],
        probabilities=[0.75, 0.75, 0.75, 0.5, 1.0],
    )
    assert observe(pairs).tolist() == [0.75, 0.25, 0.5, 0.5, 0.0]
    assert predict(pairs) == pytest.approx([1 / (1 + math.exp(-m)) for m in (2, 2, 0, 3, 3)])


@given(several_groups, st.integers(1, 5))
def test_bins_are_weighted_means_of_explicit_loops(parts, num_bins):
    pairs = ScoredGroups.join(parts).pairs
    bins = calibrate(pairs, num_bins=num_bins)
    order = sorted(range(len(pairs)), key=lambda c: abs(pairs.reward_margins[c]))
    gap = total = 0.0
    for each in bins:
        members, order = order[: each["pairs"]], order[each["pairs"] :]
        weight = sum(pairs.weights[c] for c in members)
        observed = predicted = 0.0
        for c in members:
            margin, probability = pairs.reward_margins[c], pairs.probabilities[c]
            towards = {1.0: probability, -1.0: 1 - probability, 0.0: 0.5}[float(np.sign(margin))]
            observed += pairs.weights[c] * towards / weight
            predicted += pairs.weights[c] / (1 + math.exp(-abs(margin))) / weight
        assert each["accuracy"] == pytest.approx(observed)
        assert each["predicted"] == pytest.approx(predicted)
        assert each["accuracy_low"] <= observed + 1e-12
        assert observed - 1e-12 <= each["accuracy_high"]
        gap, total = gap + weight * abs(observed - predicted), total + weight
    assert not order
    assert calibration_error(bins) == (pytest.approx(gap / total) if bins else None)


def test_no_comparisons_have_no_calibration():
    assert calibrate(scored([], [])) == []
    assert calibration_error([]) is None
