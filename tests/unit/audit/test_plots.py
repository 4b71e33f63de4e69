"""Plots of an audit."""

from copy import deepcopy
from pathlib import Path

from audit_report import REPORT, share
from matplotlib.image import imread

from rm_ray.audit.plots import plot_audit


def test_the_plots_are_drawn_of_any_report(tmp_path: Path):
    bare = deepcopy(REPORT)
    bare["findings"], bare["languages"] = {}, {}
    bare["rules"] = {"first": REPORT["rules"]["first"]}
    bare["lengths"] = {"prompt": {"rows": 0}}
    full = {**REPORT, "writers": {"rule": "", **share(0.8, 0.7, 0.9, 10.0), "by_writer": {}}}
    for name, report in (("full", full), ("bare", bare)):
        plot_audit(report, "Audit of $x", tmp_path / f"{name}.png")
        height, width, _ = imread(tmp_path / f"{name}.png").shape
        assert (width, height) == (1430, 880)
