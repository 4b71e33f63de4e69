"""An evaluation report as a text table and a figure of four plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rm_ray.evaluation.pairwise import ScoredPairs


def report_table(report: Mapping[str, Any]) -> str:
    """Return the report as text: metrics by source and subset, calibration, length, row counts."""
    header = ("", "pairs", "accuracy", "95% interval", "ties", "loss", "margin")
    rows = [("all", report["overall"])]
    for part in ("by_source", "by_subset"):
        if len(report[part]) > 1 or part == "by_subset":
            rows += [(f"  {name or '(none)'}", figures) for name, figures in report[part].items()]
    cells = [header, *((name, *_cells(figures)) for name, figures in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in cells
    ]
    length = report["length"]
    lines += [
        "",
        f"calibration error of margins: {report['calibration_error']:.4f}",
        f"correlation of reward and length: {_number(length['reward_with_tokens'])}, of margin and "
        f"length difference: {_number(length['margin_with_difference'])}; share of pairs of "
        f"different length that prefer the longer response: {_number(length['prefers_longer'])}",
        f"rows: {report['rows_scored']:,} scored, {sum(report['rows_refused'].values()):,} refused",
    ]
    lines += [f"  refused {count:6d}  {why}" for why, count in report["rows_refused"].items()]
    if report["benchmark"]:
        scores = (f"{name} {100 * score:.2f}" for name, score in report["benchmark"].items())
        lines += ["", "by the benchmark's own averages: " + ", ".join(scores)]
    return "\n".join(lines)


def _cells(figures: Mapping[str, float]) -> tuple[str, ...]:
    return (
        f"{figures['pairs']:,}",
        f"{figures['accuracy']:.4f}",
        f"{figures['accuracy_low']:.4f} to {figures['accuracy_high']:.4f}",
        f"{figures['ties']:.4f}",
        f"{figures['loss']:.4f}",
        f"{figures['reward_margin']:+.3f}",
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def plot(pairs: ScoredPairs, report: Mapping[str, Any], title: str, path: Path) -> None:
    """Plot rewards, calibration, length, and accuracy by group into an image file."""
    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(title)
    (rewards, calibration), (length, groups) = figure.subplots(2, 2)
    _draw_rewards(rewards, pairs)
    _draw_calibration(calibration, report)
    _draw_length(length, pairs)
    _draw_groups(groups, report)
    figure.savefig(path, dpi=110)


def _draw_rewards(axes: Axes, pairs: ScoredPairs) -> None:
    both = np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards])
    bins = np.linspace(both.min(), both.max() + 1e-9, 41).tolist()
    axes.hist(pairs.chosen_rewards, bins=bins, alpha=0.6, label="chosen")
    axes.hist(pairs.rejected_rewards, bins=bins, alpha=0.6, label="rejected")
    axes.set(title="rewards", xlabel="reward", ylabel="responses")
    axes.legend()


def _draw_calibration(axes: Axes, report: Mapping[str, Any]) -> None:
    bins = report["calibration"]
    predicted = [each["predicted"] for each in bins]
    found = np.array([each["accuracy"] for each in bins])
    low = found - [each["accuracy_low"] for each in bins]
    high = np.array([each["accuracy_high"] for each in bins]) - found
    axes.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)
    axes.errorbar(predicted, found, yerr=np.maximum([low, high], 0), fmt="o-", markersize=4)
    axes.set(title="calibration", xlabel="sigmoid of the margin", ylabel="share correct")
    axes.grid(alpha=0.25)


def _draw_length(axes: Axes, pairs: ScoredPairs) -> None:
    difference = pairs.chosen_tokens - pairs.rejected_tokens
    axes.scatter(difference, pairs.reward_margins, s=4, alpha=0.4)
    axes.axhline(0, color="grey", linewidth=1)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set(
        title="margin and length", xlabel="tokens, chosen minus rejected", ylabel="reward margin"
    )


def _draw_groups(axes: Axes, report: Mapping[str, Any]) -> None:
    groups = report["by_subset"] or report["by_source"]
    names = sorted(groups, key=lambda name: groups[name]["accuracy"])
    found = np.array([groups[name]["accuracy"] for name in names])
    low = found - [groups[name]["accuracy_low"] for name in names]
    high = np.array([groups[name]["accuracy_high"] for name in names]) - found
    axes.errorbar(found, range(len(names)), xerr=np.maximum([low, high], 0), fmt="o")
    axes.set_yticks(range(len(names)), [name[-40:] for name in names], fontsize=8)
    axes.axvline(0.5, color="grey", linewidth=1)
    axes.set(title="accuracy, 95% interval", xlabel="accuracy")
    axes.grid(alpha=0.25)
