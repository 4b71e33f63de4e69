"""Plots of an audit: findings, rules without a model, lengths and languages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rm_ray.evaluation.reports.table_and_plots import literal

Report = Mapping[str, Any]

MOST_BARS = 10


def plot_audit(report: Report, title: str, path: Path) -> None:
    """Draw four plots into an image file."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(literal(title))
    panels = figure.subplots(2, 2)
    _draw_bars(
        panels[0, 0],
        {kind.replace("_", " "): each["share"] for kind, each in report["findings"].items()},
        "share of rows with a finding",
    )
    _draw_rules(panels[0, 1], report)
    _draw_lengths(panels[1, 0], report)
    rows = report["rows_read"]
    languages = {name: count / rows for name, count in report["languages"].items()}
    _draw_bars(panels[1, 1], languages, "share of rows in a language")
    figure.savefig(path, dpi=110)


def _draw_bars(axes: Axes, shares: Mapping[str, float], title: str) -> None:
    shown = list(shares.items())[:MOST_BARS]
    axes.barh(range(len(shown)), [share for _, share in shown])
    axes.set_yticks(range(len(shown)), [literal(name) for name, _ in shown])
    axes.invert_yaxis()
    axes.set(title=title, xlabel="share")


def _draw_rules(axes: Axes, report: Report) -> None:
    rules = {name: each for name, each in report["rules"].items() if each["pairs"]}
    if report["writers"]["pairs"]:
        rules["writer"] = report["writers"]
    shares = np.array([each["share"] for each in rules.values()])
    low = shares - [each["share_low"] for each in rules.values()]
    high = np.array([each["share_high"] for each in rules.values()]) - shares
    axes.errorbar(shares, range(len(rules)), xerr=np.maximum([low, high], 0), fmt="o")
    axes.set_yticks(range(len(rules)), list(rules))
    axes.axvline(0.5, color="grey", linewidth=1)
    axes.set(title="rules without a model, 95% interval", xlabel="share of pairs they get right")
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.25)


def _draw_lengths(axes: Axes, report: Report) -> None:
    present = {name: each for name, each in report["lengths"].items() if each["rows"]}
    for name, each in present.items():
        histogram = each["histogram"]
        axes.stairs(histogram["rows"], histogram["edges"], label=name)
    axes.set_xscale("symlog")
    axes.set(title="lengths", xlabel="words", ylabel="rows")
    if present:
        axes.legend()
