import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_ray.evaluation.reports.ensemble import ensemble_report, ensemble_table, spread_over_models
from rm_ray.evaluation.scored_pairs import ScoredPairs


def pairs(margins: list[float] | np.ndarray) -> ScoredPairs:
    margins = np.asarray(margins, dtype=np.float64)
    zeros, ones = np.zeros(len(margins)), np.ones(len(margins), dtype=np.int64)
    return ScoredPairs(
        chosen_rewards=margins, rejected_rewards=zeros, margins=zeros, chosen_tokens=ones,
        rejected_tokens=ones,
    )  # fmt: skip


def test_the_spread_is_the_sample_standard_deviation_over_the_models():
    rewards = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert spread_over_models(rewards).tolist() == [1.0, 0.0]


@given(st.integers(2, 5), st.integers(0, 10**6))
def test_the_order_of_the_models_does_not_matter(num_models: int, seed: int):
    rewards = np.random.default_rng(seed).normal(size=(num_models, 7))
    assert spread_over_models(rewards[::-1]) == pytest.approx(spread_over_models(rewards))


def test_accuracy_of_each_model_of_the_mean_and_by_spread():
    first, second = np.array([2.0, 1.0, -1.0, -3.0]), np.array([2.0, 1.5, 2.0, 1.0])
    report = ensemble_report(
        {"a": pairs(first), "b": pairs(second)}, pairs((first + second) / 2)
    )  # fmt: skip
    assert [(one["model"], one["accuracy"]) for one in report["models"]] == [("a", 0.5), ("b", 1.0)]
    assert report["mean"]["accuracy"] == 0.75
    # From the pair that the models agree on to the one that they are most at odds over.
    assert [(one["pairs"], one["accuracy"]) for one in report["by_spread"]] == [
        (1, 1.0), (1, 1.0), (1, 1.0), (1, 0.0),
    ]  # fmt: skip
    assert report["by_spread"][0]["least_spread"] == 0.0
    assert report["by_spread"][3]["most_spread"] == pytest.approx(4 / np.sqrt(2))


def test_models_that_are_unsure_where_they_are_wrong_show_it():
    """Margins of 1 with noise of a known size: the larger it is, the more the mean errs."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(0.1, 4.0, 3000)
    members = [1 + noise * rng.normal(size=3000) for _ in range(4)]
    report = ensemble_report(
        {str(i): pairs(m) for i, m in enumerate(members)}, pairs(np.mean(members, axis=0))
    )
    found = [part["accuracy"] for part in report["by_spread"]]
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] > 0.2
    assert report["mean"]["accuracy"] > max(one["accuracy"] for one in report["models"])


def test_the_table_names_the_models():
    said = ensemble_table(ensemble_report({"a b": pairs([1.0]), "c": pairs([-1.0])}, pairs([0.0])))
    lines = said.splitlines()
    assert lines[0].startswith("accuracy 1.0000 (")
    assert [line.split(")  ")[1] for line in lines[:3]] == ["a b", "c", "mean of the models"]
    assert lines[-1].startswith("  spread     1.414 to 1.414: 0.5000 (")
    assert "(1 pairs)" in lines[-1]


def test_without_comparisons_nothing_is_claimed():
    report = ensemble_report({"a": pairs([]), "b": pairs([])}, pairs([]))
    assert (report["mean"]["accuracy"], report["by_spread"]) == (None, [])
    assert ensemble_table(report).startswith("accuracy unknown  a")
