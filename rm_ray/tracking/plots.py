"""Plots of a run: accuracy, loss, both rewards, margin and learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rm_ray.config.sections.evaluation import DEFAULT_SET
from rm_ray.runs.history import Record

_PANELS = ("accuracy", "loss", "chosen_rewards", "rejected_rewards", "reward_margin", "lr")
_LISTS = {"best_of_k": "held out, best of K", "kendall_tau": "held out, Kendall's tau"}
_MARGINS = {
    "left": 0.05, "right": 0.98, "bottom": 0.07, "top": 0.9, "wspace": 0.2, "hspace": 0.29
}  # fmt: skip
_AXES = {"episodes": "episodes", "hours": "hours"}


def plot_run(
    records: Sequence[Record], title: str, folder: Path, *, over: Iterable[str] = tuple(_AXES)
) -> list[Path]:
    """Draw the run over episodes and over hours; return the PNG files."""
    paths = []
    for axis in over:
        label = _AXES[axis]
        figure = Figure(figsize=(13, 7))
        figure.suptitle(title)
        # A layout that is computed would draw everything twice.
        panels = figure.subplots(2, 3, gridspec_kw=_MARGINS)
        for axes, name in zip(panels.flat, _PANELS, strict=True):
            _draw(axes, records, name, axis)
            axes.set_xlabel(label)
        path = folder / f"training_over_{axis}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def _draw(axes: Axes, records: Sequence[Record], name: str, axis: str) -> None:
    """Draw the batch means, their running mean, and the held-out points on top."""
    axes.set_title(f"train/rm/{name}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4))
    x, y = _series(records, "train", f"train/rm/{name}", axis)
    smooth = name != "lr" and len(y) >= 20
    axes.plot(x, y, color="C0", alpha=0.35 if smooth else 1.0, linewidth=1, label="train")
    if smooth:
        axes.plot(x, _running_mean(y), color="C0", linewidth=1.8, label="train, smoothed")
    x, y = _series(records, "eval", f"eval/rm/{name}", axis)
    if len(x):
        axes.plot(x, y, "o-", color="C1", markersize=4, linewidth=1, label="held out")
    if name == "accuracy":
        _draw_lists(axes, records, axis)
    if name in ("accuracy", "loss"):
        _draw_named_sets(axes, records, name, axis)
    if len(axes.lines) > 1:
        axes.legend(fontsize=8)


def _draw_lists(axes: Axes, records: Sequence[Record], axis: str) -> None:
    """Draw the held-out figures of lists, if there are lists, beside the accuracy."""
    for color, (name, label) in zip(("C2", "C3"), _LISTS.items(), strict=True):
        x, y = _series(records, "eval", f"eval/rm/{name}", axis)
        if len(x):
            axes.plot(x, y, "o--", color=color, markersize=3, linewidth=1, label=label)


def _draw_named_sets(axes: Axes, records: Sequence[Record], name: str, axis: str) -> None:
    """Draw the figures of named sets; beside the accuracy also a benchmark's own average."""
    names = {n.split("/")[1] for r in records if r.kind == "eval" for n in r.metrics}
    for number, named in enumerate(sorted(names - {DEFAULT_SET})):
        shown = {name: (named, "o-")}
        if name == "accuracy":
            shown["score"] = (f"{named}, score", "s:")
        for metric, (label, style) in shown.items():
            x, y = _series(records, "eval", f"eval/{named}/{metric}", axis)
            if len(x):
                color = f"C{4 + number % 6}"
                axes.plot(x, y, style, color=color, markersize=3, linewidth=1, label=label)


def _series(
    records: Sequence[Record], kind: str, name: str, axis: str
) -> tuple[np.ndarray, np.ndarray]:
    chosen = [r for r in records if r.kind == kind and name in r.metrics]
    x = [r.hours if axis == "hours" else r.episode for r in chosen]
    return np.array(x), np.array([r.metrics[name] for r in chosen])


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Average over a window of 1/20 of the run, narrower at both ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    mean: np.ndarray = (sums[high] - sums[low]) / (high - low)
    return mean
