import numpy as np
import pytest
from scored import scored

from rm_ray.evaluation.reports.group_report import group_report
from rm_ray.evaluation.reports.preference_report import ScoredPreferences, preference_report
from rm_ray.evaluation.reward_bench import ScoredPrompt
from rm_ray.evaluation.scored_groups import ScoredGroups


def preferences(
    margins: list[float], subsets: list[str], rewards: list[list[float]] | None = None
) -> ScoredPreferences:
    """Pairs whose chosen rewards are the margins, and prompts with the given rewards."""
    count = len(margins)
    rewards = rewards or [[margin, 0.0] for margin in margins]
    return ScoredPreferences(
        groups=ScoredGroups.of(scored(margins, np.zeros(count))),
        sources=["here"] * count,
        subsets=subsets,
        prompts=[
            ScoredPrompt(subset=subset, rewards=each, num_correct=1, id=str(i))
            for i, (subset, each) in enumerate(zip(subsets, rewards, strict=True))
        ],
        rows=[{"number": i} for i in range(count)],
    )


def test_a_report_has_the_groups_report_and_the_worst_rows_first():
    given = preferences([1.0, -2.0, 0.0, -3.0], [""] * 4)
    report = preference_report(given)
    figures = group_report(given.groups, given.sources, given.subsets)
    assert {name: report[name] for name in figures} == figures
    assert report["worst"] == [{"number": 3}, {"number": 1}]
    assert report["benchmark"] == {}


def test_subsets_of_reward_bench_get_its_own_averages():
    subsets = ["alpacaeval-easy", "alpacaeval-easy", "mt-bench-easy", "math-prm"]
    benchmark = preference_report(preferences([1.0, -1.0, 1.0, 0.0], subsets))["benchmark"]
    chat = (100 * 0.5 + 28 * 1.0) / 128
    assert benchmark == pytest.approx({"Chat": chat, "Reasoning": 0.0, "Score": chat / 2})


def test_several_responses_in_subsets_get_the_averages_of_reward_bench_2():
    rewards = [[2.0, 1.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]
    benchmark = preference_report(preferences([1.0, -1.0], ["Math", "Math"], rewards))["benchmark"]
    assert benchmark == {"Math": 0.5, "Score": 0.5}


def test_unknown_ids_omit_only_the_benchmark_s_averages(caplog):
    rewards = [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]]
    report = preference_report(preferences([1.0, -1.0], ["Ties", "Ties"], rewards))
    assert report["benchmark"] == {}
    assert report["overall"]["accuracy"] == 0.5
    assert "RewardBench 2's own averages are left out" in caplog.text
