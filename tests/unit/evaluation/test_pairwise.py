import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scored import ranked, scored, several_groups

from rm_ray.evaluation.intervals import wilson_interval
from rm_ray.evaluation.pairwise import Labels, bradley_terry_losses, pairwise_metrics
from rm_ray.evaluation.scored_groups import ScoredGroups

rewards = hnp.arrays(np.float64, 30, elements=st.floats(-20, 20))


def test_known_pairs_have_known_metrics():
    found = pairwise_metrics(scored([1.0, 2.0, 0.0, 3.0], [0.0, 2.0, 1.0, 1.0]))
    assert found["pairs"] == 4
    assert found["accuracy"] == 2.5 / 4
    assert (found["ties"], found["labelled_ties"]) == (0.25, 0.0)
    losses = [math.log1p(math.exp(-m)) for m in (1.0, 0.0, -1.0, 2.0)]
    assert found["bradley_terry_loss"] == pytest.approx(sum(losses) / 4)
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


@given(rewards, rewards)
def test_labelled_ties_have_no_side(chosen, rejected):
    halves = {"probabilities": [0.5] * 30, "margins": [0.25] * 30}
    ours, swapped = (
        pairwise_metrics(scored(a, b, **halves))
        for a, b in ((chosen, rejected), (rejected, chosen))
    )
    assert ours == pytest.approx(swapped, abs=1e-12)
    assert (ours["accuracy"], ours["labelled_ties"], ours["reward_margin"]) == (0.5, 1.0, 0.0)


@given(several_groups)
def test_each_group_with_comparisons_weighs_one(parts):
    """Means over groups of means within them, in plain loops."""
    found = pairwise_metrics(ScoredGroups.join(parts).pairs)
    names = ("accuracy", "bradley_terry_loss", "margin", "chosen")
    sums: dict[str, list[float]] = {name: [] for name in names}
    for part in (part for part in parts if len(part.pairs)):
        means = dict.fromkeys(sums, 0.0)
        for c in range(len(part.group)):
            weight, p = part.weights[c], part.probabilities[c]
            better, worse = part.rewards[part.better[c]], part.rewards[part.worse[c]]
            margin = better - worse
            right = 0.5 if p == 0.5 or margin == 0 else float(margin > 0)
            asked = margin - part.margins[c] if p == 1 else margin
            loss = p * math.log1p(math.exp(-asked)) + (1 - p) * math.log1p(math.exp(asked))
            means["accuracy"] += weight * right
            means["bradley_terry_loss"] += weight * loss
            means["margin"] += weight * (0 if p == 0.5 else margin)
            means["chosen"] += weight * ((better + worse) / 2 if p == 0.5 else better)
        for name, value in means.items():
            sums[name].append(value)
    if not sums["bradley_terry_loss"]:
        assert found == {"pairs": 0, **dict.fromkeys([name for name in found if name != "pairs"])}
        return
    assert found["accuracy"] == pytest.approx(np.mean(sums["accuracy"]))
    assert found["bradley_terry_loss"] == pytest.approx(np.mean(sums["bradley_terry_loss"]))
    assert found["reward_margin"] == pytest.approx(np.mean(sums["margin"]), abs=1e-12)
    assert found["chosen_rewards"] == pytest.approx(np.mean(sums["chosen"]), abs=1e-12)
    assert found["chosen_rewards"] - found["rejected_rewards"] == pytest.approx(
        found["reward_margin"], abs=1e-12
    )
    rounding = 1e-12  # the interval's ends are sums and roots
    assert found["accuracy_low"] - rounding <= found["accuracy"]
    assert found["accuracy"] <= found["accuracy_high"] + rounding


def test_comparisons_of_one_prompt_are_no_independent_evidence():
    """A list of 9 has 36 comparisons, yet all may hang on one response."""
    lists = [ranked(list(range(9)), [float(i) for i in range(9)]) for _ in range(8)]
    lists += [ranked(list(range(9)), [-float(i) for i in range(9)]) for _ in range(2)]
    found = pairwise_metrics(ScoredGroups.join(lists).pairs)
    assert found["pairs"] == 360
    assert found["accuracy"] == pytest.approx(0.8)
    interval = (found["accuracy_low"], found["accuracy_high"])
    assert interval == pytest.approx(wilson_interval(8, 10))


def test_the_loss_of_a_soft_label_is_least_at_its_log_odds_and_asks_no_margin():
    differences = np.linspace(-4, 4, 801)
    count = len(differences)
    for probability in (0.5, 0.6, 0.9):
        columns = {"probabilities": [probability] * count, "margins": [1.0] * count}
        losses = bradley_terry_losses(scored(differences, np.zeros(count), **columns))
        odds = math.log(probability / (1 - probability))
        assert differences[losses.argmin()] == pytest.approx(odds, abs=0.01)


def test_a_sure_label_asks_its_margin():
    found = bradley_terry_losses(scored([1.0], [0.0], margins=[0.5]))
    assert found == pytest.approx([math.log1p(math.exp(-0.5))])


def test_labels_name_the_groups_asked_for():
    labels = Labels(names=("a", "b"), codes=np.array([0, 1, 1]))
    assert labels.of(np.array([2, 0])) == ["b", "a"]
