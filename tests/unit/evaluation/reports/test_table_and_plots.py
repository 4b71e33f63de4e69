from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from scored import ranked

from rm_ray.evaluation.reports.group_report import group_report
from rm_ray.evaluation.reports.table_and_plots import plot, report_table
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.evaluation.scored_pairs import ScoredPairs


@pytest.fixture
def pairs() -> ScoredPairs:
    rng = np.random.default_rng(0)
    return ScoredPairs(
        chosen_rewards=rng.normal(1, 1, 40),
        rejected_rewards=rng.normal(0, 1, 40),
        margins=np.zeros(40),
        chosen_tokens=rng.integers(5, 50, 40),
        rejected_tokens=rng.integers(5, 50, 40),
    )


def report_of(pairs: ScoredPairs, subsets: list[str]) -> dict[str, Any]:
    counts = {"rows_scored": 1_234, "rows_refused": {"empty": 2, "too_long": 1}}
    figures = group_report(ScoredGroups.of(pairs), ["a"] * 30 + ["b"] * 10, subsets)
    return {**counts, **figures, "benchmark": {}}


def test_the_table_has_a_line_for_all_pairs_and_each_source_and_subset(pairs: ScoredPairs):
    report = report_of(pairs, [""] * 20 + ["Math"] * 20)
    lines = report_table(report).splitlines()
    columns = ["pairs", "accuracy", "95% interval", "ties", "Bradley-Terry loss", "margin"]
    assert lines[0].split() == " ".join(columns).split()
    assert [line.split()[0] for line in lines[1:6]] == ["all", "a", "b", "(none)", "Math"]
    assert lines[1].split()[1:3] == ["40", f"{report['overall']['accuracy']:.4f}"]
    assert "rows: 1,234 scored, 3 refused" in lines
    assert "  refused      2  empty" in lines


def test_a_single_source_needs_no_line_of_its_own(pairs: ScoredPairs):
    report = report_of(pairs, [""] * 40)
    report["by_source"] = {"a": report["overall"]}
    assert report_table(report).splitlines()[2] == ""


def test_the_benchmark_s_own_averages_are_percentages(pairs: ScoredPairs):
    report = report_of(pairs, [""] * 40) | {"benchmark": {"Chat": 0.5, "Score": 0.625}}
    assert "averages: Chat 50.00, Score 62.50" in report_table(report)


def test_a_missing_correlation_is_unknown(pairs: ScoredPairs):
    report = report_of(pairs, [""] * 40)
    report["length"] = dict.fromkeys(report["length"])
    assert "reward and length: unknown, of margin and length difference: unknown" in report_table(
        report
    )


@pytest.mark.parametrize("subsets", [[""] * 40, ["Math"] * 20 + ["Code"] * 20])
def test_the_plot_is_an_image(pairs: ScoredPairs, subsets: list[str], tmp_path: Path):
    path = tmp_path / "evaluation.png"
    plot(ScoredGroups.of(pairs), report_of(pairs, subsets), "a model", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


@pytest.fixture
def lists() -> ScoredGroups:
    rng = np.random.default_rng(0)
    utilities = rng.integers(0, 4, (40, 4))
    parts = [
        ranked(u.tolist(), (u + rng.normal(size=4)).tolist(), scores=u.tolist()) for u in utilities
    ]
    return ScoredGroups.join([*parts, ranked([2, 1], [0.0, 1.0])])


def list_report(groups: ScoredGroups) -> dict[str, Any]:
    counts: dict[str, Any] = {"rows_scored": 41, "rows_refused": {}, "benchmark": {}}
    return {**group_report(groups, ["lists"] * 40 + ["pairs"], []), **counts}


def test_the_table_shows_lists_labelled_ties_and_scores_where_there_are_some(lists: ScoredGroups):
    report = list_report(lists)
    lines = report_table(report).splitlines()
    assert "labelled ties" in lines[0]
    overall, best = report["overall"], report["overall"]["lists"]
    assert lines[1].split()[7] == f"{overall['labelled_ties']:.4f}"
    titles = ["lists", "best of K", "95% interval", "by chance", "Kendall's tau", "95% interval"]
    assert lines[5].split() == " ".join(titles).split()
    assert lines[6].split() == [
        "all", "40", f"{best['best_of_k']:.4f}",
        f"{best['best_of_k_low']:.4f}", "to", f"{best['best_of_k_high']:.4f}",
        f"{best['best_of_k_chance']:.4f}", f"{best['kendall_tau']:+.4f}",
        f"{best['kendall_tau_low']:+.4f}", "to", f"{best['kendall_tau_high']:+.4f}",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[2:4]] == ["lists", "pairs"]
    assert lines[7].startswith("  lists") and lines[8] == ""  # the source of pairs has no lists
    spearman = f"{overall['scores']['spearman']:.3f}"
    assert f"rank correlation of reward and score: {spearman} over 160 responses" in lines


def test_a_plain_table_has_no_word_of_lists(pairs: ScoredPairs):
    table = report_table(report_of(pairs, [""] * 40))
    assert not any(word in table for word in ("best of K", "Kendall", "labelled", "score:"))


def test_responses_without_comparisons_have_a_table_and_a_plot(tmp_path: Path):
    alone = ScoredGroups.one(rewards=[1.0], tokens=[5], better=[], worse=[], scores=[2.0])
    counts: dict[str, Any] = {"rows_scored": 1, "rows_refused": {}, "benchmark": {}}
    report = {**group_report(alone, ["a"], []), **counts}
    assert report_table(report).splitlines()[1].split()[:3] == ["all", "0", "unknown"]
    plot(alone, report, "a model", tmp_path / "evaluation.png")


def test_lists_have_two_plots_more(pairs: ScoredPairs, lists: ScoredGroups, tmp_path: Path):
    plain, both = tmp_path / "plain.png", tmp_path / "lists.png"
    plot(ScoredGroups.of(pairs), report_of(pairs, [""] * 40), "a model", plain)
    plot(lists, list_report(lists), "a model", both)
    sizes = [imread(path).shape[:2] for path in (plain, both)]
    assert sizes == [(880, 1430), (880, 2145)]
    right = imread(both)[:, 1430:, :3]
    for half in (right[:440], right[440:]):
        assert (half[..., 2] > half[..., 0] + 0.3).any(), "each panel has something blue"


def test_the_calibration_plot_shows_labels_only_if_some_are_soft(
    pairs: ScoredPairs, lists: ScoredGroups, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    drawn, real = [], Axes.set
    monkeypatch.setattr(Axes, "set", lambda one, **about: drawn.append(one) or real(one, **about))
    plot(ScoredGroups.of(pairs), report_of(pairs, [""] * 40), "a model", tmp_path / "a.png")
    plot(lists, list_report(lists), "a model", tmp_path / "b.png")
    plain, soft = (axes for axes in drawn if axes.get_title() == "calibration")
    assert plain.get_ylabel() == "share correct"
    assert plain.get_legend() is None
    assert soft.get_ylabel() == "labelled probability of the higher reward"
    assert soft.get_legend().get_texts()[0].get_text() == "labels"


def test_dollar_signs_of_models_sources_and_subsets_are_drawn_as_they_are(
    pairs: ScoredPairs, tmp_path: Path
):
    report = report_of(pairs, ["x_$a^ and $b"] * 40)
    plot(ScoredGroups.of(pairs), report, "/d/$A/x_$B^", tmp_path / "dollars.png")
    assert imread(tmp_path / "dollars.png").shape[:2] == (880, 1430)
