from dataclasses import replace
from typing import Any

import numpy as np
import plain_figures
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scored import ranked, scored, several_groups

from rm_ray.evaluation.lists import describe_lists
from rm_ray.evaluation.pairwise import pairwise_metrics
from rm_ray.evaluation.reports.group_report import (
    find_worst,
    group_metrics,
    group_metrics_by,
    group_report,
)
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.evaluation.scored_pairs import ScoredPairs


def check_same(plain: Any, ours: Any, place: str = "report") -> None:
    """Check that all that is in ``plain`` is in ``ours``, every number bit for bit."""
    if isinstance(plain, dict):
        for name, value in plain.items():
            check_same(value, ours[name], f"{place}.{name}")
    elif isinstance(plain, list):
        assert len(plain) == len(ours), place
        for i, (one, other) in enumerate(zip(plain, ours, strict=True)):
            check_same(one, other, f"{place}[{i}]")
    else:
        assert repr(plain) == repr(ours), place


@st.composite
def plain_pairs(draw: st.DrawFn) -> ScoredPairs:
    count = draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    few, many = st.sampled_from([-0.5, 0.0, 1.25]), st.floats(-20, 20).map(lambda r: round(r, 3))
    elements = draw(st.sampled_from([few, many]))
    floats, integers = hnp.arrays(dtype, count, elements=elements), st.integers(1, 90)
    return ScoredPairs(
        chosen_rewards=draw(floats),
        rejected_rewards=draw(floats),
        margins=draw(hnp.arrays(dtype, count, elements=st.sampled_from([0.0, 0.75]))),
        chosen_tokens=draw(hnp.arrays(np.int32, count, elements=integers)),
        rejected_tokens=draw(hnp.arrays(np.int32, count, elements=integers)),
    )


@given(plain_pairs())
def test_plain_pairs_have_their_plain_figures_bit_for_bit(pairs):
    names = ["abc"[i % 3] for i in range(len(pairs))]
    plain = plain_figures.plain_report(pairs, names, names)
    check_same(plain, group_report(ScoredGroups.of(pairs), names, names))
    worst = find_worst(ScoredGroups.of(pairs), 5)
    assert worst.tolist() == plain_figures.find_worst(pairs, 5).tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_plain_pairs_have_their_plain_figures_bit_for_bit(dtype):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 20_011)).astype(dtype)
    tokens = rng.integers(5, 900, (2, 20_011))
    pairs = scored(chosen, rejected, chosen_tokens=tokens[0], rejected_tokens=tokens[1])
    names = ["abc"[i % 3] for i in range(len(pairs))]
    plain = plain_figures.plain_report(pairs, names, [])
    check_same(plain, group_report(ScoredGroups.of(pairs), names, []))


@given(several_groups, st.data())
def test_the_labels_groups_add_up_to_the_whole(parts, data):
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=len(parts), max_size=len(parts)))
    groups = ScoredGroups.join(parts)
    found, whole = group_metrics_by(groups, labels), group_metrics(groups)
    assert set(found) == set(labels)
    assert sum(figures["pairs"] for figures in found.values()) == whole["pairs"]
    compared = {
        name: sum(
            len(part.pairs) > 0 for part, label in zip(parts, labels, strict=True) if label == name
        )
        for name in found
    }
    for name in ("accuracy", "bradley_terry_loss", "reward_margin"):
        if whole["pairs"]:
            shares = [f[name] * compared[label] for label, f in found.items() if f["pairs"]]
            assert sum(shares) / sum(compared.values()) == pytest.approx(whole[name], abs=1e-9)


def test_lists_and_scores_are_reported_where_there_are_some():
    pair = ScoredGroups.of(scored([1.0], [0.0]))
    triple = ranked([3, 2, 1], [2.0, 1.0, 3.0], scores=[3, 2, 1])
    groups = ScoredGroups.join([pair, triple])
    report = group_report(groups, ["pairs", "lists"], ["", ""])
    assert report["by_subset"] == {}
    assert report["by_source"]["pairs"] == pairwise_metrics(pair.pairs)
    assert report["overall"]["lists"] == report["by_source"]["lists"]["lists"]
    assert report["overall"]["lists"] == describe_lists(triple)
    assert report["overall"]["scores"] == {"responses": 3, "spearman": pytest.approx(-0.5)}
    assert set(group_report(groups, ["a", "b"], ["x", ""])["by_subset"]) == {"x", ""}


def test_scored_responses_without_comparisons_have_a_report():
    alone = ScoredGroups.one(rewards=[1.0], tokens=[5], better=[], worse=[], scores=[2.0])
    report = group_report(ScoredGroups.join([alone, alone]), ["a", "a"], [])
    assert (report["overall"]["pairs"], report["overall"]["accuracy"]) == (0, None)
    assert report["overall"]["scores"] == {"responses": 2, "spearman": None}
    assert (report["calibration"], report["calibration_error"]) == ([], None)


def test_the_worst_groups_have_the_most_clearly_wrong_comparisons():
    groups = ScoredGroups.join(
        [
            ranked([2, 1], [0.0, 1.0]),
            ranked([3, 2, 1], [0.0, 1.0, 4.0]),
            ranked([2, 1], [5.0, 0.0]),
            ranked([1, 1], [0.0, 9.0]),
            ScoredGroups.one(rewards=[1.0], tokens=[5], better=[], worse=[]),
        ]
    )
    assert find_worst(groups, 10).tolist() == [1, 0]
    assert find_worst(groups, 1).tolist() == [1]


def test_the_calibration_of_a_model_of_ties_leaves_labelled_ties_out():
    """Among comparisons that do not tie, Davidson's model predicts the sigmoid of the margin."""
    rng = np.random.default_rng(0)
    groups, nu = [], 1.0
    for margin in rng.uniform(0, 4, 4_000):
        wins, losses = np.exp(margin / 2), np.exp(-margin / 2)
        outcome = rng.choice(3, p=np.array([wins, losses, nu]) / (wins + losses + nu))
        rewards = [margin, 0.0] if outcome != 1 else [0.0, margin]
        probability = 0.5 if outcome == 2 else 1.0
        groups.append(ScoredGroups.one(
            rewards=rewards, tokens=[1, 1], better=[0], worse=[1], probabilities=[probability],
        ))  # fmt: skip
    joined, sources = ScoredGroups.join(groups), ["a"] * len(groups)
    errors = [
        group_report(joined, sources, [], models_ties=models_ties)["calibration_error"]
        for models_ties in (True, False)
    ]
    assert errors[0] < 0.03 < 0.06 < errors[1]


def test_bradley_terry_figures_are_those_of_raw_rewards():
    rng = np.random.default_rng(0)
    parts = [ranked([1.0, 0.0, 0.5], [*rng.normal(size=3)]) for _ in range(20)]
    raw = ScoredGroups.join(parts)
    labels = ["a"] * 12 + ["b"] * 8
    expected = group_report(raw, labels, [])
    standardized = replace(raw, rewards=(raw.rewards - 3) / 0.1)
    found = group_report(standardized, labels, [], raw=raw)
    assert found["calibration"] == expected["calibration"]
    for place in (lambda report: report["overall"], lambda report: report["by_source"]["b"]):
        one, other = place(found), place(expected)
        for name in ("bradley_terry_loss", "accuracy", "lists"):
            assert one[name] == other[name]
        assert one["reward_margin"] == pytest.approx(10 * other["reward_margin"])


def test_the_report_has_the_statistics_of_all_responses():
    groups = ScoredGroups.join([ranked([1.0, 0.0], [3.0, 1.0]), ranked([1.0], [8.0])])
    found = group_report(groups, ["a", "a"], [])["rewards"]
    expected = {"mean": 4.0, "std": pytest.approx((26 / 3) ** 0.5), "num_responses": 3}
    assert found == expected
