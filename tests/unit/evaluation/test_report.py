from pathlib import Path

import numpy as np
import pytest

from rm_ray.evaluation.pairwise import ScoredPairs, pairwise_report
from rm_ray.evaluation.report import plot, report_table


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


def report_of(pairs: ScoredPairs, subsets: list[str]) -> dict:
    counts = {"rows_scored": 1_234, "rows_refused": {"empty": 2, "too_long": 1}}
    figures = pairwise_report(pairs, ["a"] * 30 + ["b"] * 10, subsets)
    return {**counts, **figures, "benchmark": {}}


def test_the_table_has_a_line_for_all_pairs_and_each_source_and_subset(pairs: ScoredPairs):
    report = report_of(pairs, [""] * 20 + ["Math"] * 20)
    lines = report_table(report).splitlines()
    assert lines[0].split() == ["pairs", "accuracy", "95%", "interval", "ties", "loss", "margin"]
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
    plot(pairs, report_of(pairs, subsets), "a model", path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
