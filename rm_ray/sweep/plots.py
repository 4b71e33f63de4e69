"""Plots of a sweep: the metric against each swept setting, and each trial's learning curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rm_ray.evaluation.reports.table_and_plots import literal
from rm_ray.sweep.ranking import RankedSetting

MOST_LABELS = 12
"""Settings that the legend of the learning curves names, at most."""


def plot_sweep(
    ranked: Sequence[RankedSetting], metric: str, title: str, folder: Path
) -> list[Path]:
    """Draw the plots; return their PNG files."""
    names = list(ranked[0].settings)
    figure = Figure(figsize=(5.5 * len(names), 4.5), layout="constrained")
    figure.suptitle(title)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _draw_setting(axes, ranked, name)
        axes.set(xlabel=name, ylabel=metric)
    curves = Figure(figsize=(9, 5.5), layout="constrained")
    curves.suptitle(title)
    _draw_curves(curves.subplots(), ranked, metric)
    paths = [folder / "settings.png", folder / "learning_curves.png"]
    for each, path in zip((figure, curves), paths, strict=True):
        each.savefig(path, dpi=110)
    return paths


def _draw_setting(axes: Axes, ranked: Sequence[RankedSetting], name: str) -> None:
    """Draw every trial, and mean and spread of every setting, in the order of the values."""
    values = [setting.settings[name] for setting in ranked]
    are_numbers = all(type(value) in (int, float) for value in values)
    labels = sorted({str(value) for value in values})
    places = values if are_numbers else [labels.index(str(value)) for value in values]
    for setting, place in zip(ranked, places, strict=True):
        for one in setting.outcomes:
            if one.value is not None:
                fill = "C0" if one.state == "finished" else "none"
                axes.plot(place, one.value, "o", color="C0", markerfacecolor=fill, alpha=0.5)
        if setting.mean is not None:
            axes.errorbar(place, setting.mean, yerr=setting.spread, fmt="_", color="C1", capsize=4)
    axes.grid(alpha=0.25)
    if not are_numbers:
        axes.set_xticks(range(len(labels)), [literal(label[-30:]) for label in labels])
    elif _is_wide(values):
        axes.set_xscale("log")


def _is_wide(values: Sequence[Any]) -> bool:
    """Return whether numbers need a logarithmic axis."""
    return min(values) > 0 and math.log10(max(values) / min(values)) >= 1


def _draw_curves(axes: Axes, ranked: Sequence[RankedSetting], metric: str) -> None:
    """Draw the metric over the steps, with a colour for each setting, the best first."""
    for number, setting in enumerate(ranked):
        parts = [f"{k.rpartition('.')[2]} {v}" for k, v in setting.settings.items()]
        label = literal(", ".join(parts))
        for one in setting.outcomes:
            steps, values = [step for step, _ in one.curve], [value for _, value in one.curve]
            axes.plot(
                steps,
                values,
                "o-" if one.state == "finished" else "o--",
                color=f"C{number % 10}",
                markersize=3,
                linewidth=1,
                label=label if one is setting.outcomes[0] and number < MOST_LABELS else None,
            )
    axes.set(xlabel="step", ylabel=metric, title="dashed: not finished")
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(fontsize=8)
