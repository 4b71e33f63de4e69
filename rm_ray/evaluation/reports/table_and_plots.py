"""An evaluation report as a text table and a figure of its plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rm_ray.evaluation.calibration import observe, predict
from rm_ray.evaluation.intervals import mean_interval
from rm_ray.evaluation.lists import best_of_k, best_of_k_chance, count_compared, kendall_tau
from rm_ray.evaluation.scored_groups import ScoredGroups
from rm_ray.evaluation.scored_pairs import ScoredPairs

Figures = Mapping[str, Any]

MOST_POINTS = 5_000
"""Labels drawn in the calibration plot, at most."""


def report_table(report: Figures) -> str:
    """Return the report as text: metrics by source and subset, calibration, length, row counts."""
    rows = [("all", report["overall"])]
    for part in ("by_source", "by_subset"):
        if len(report[part]) > 1 or part == "by_subset":
            rows += [(f"  {name or '(none)'}", figures) for name, figures in report[part].items()]
    length = report["length"]
    lines = [
        *_pairs_table(rows),
        *_lists_table(rows),
        "",
        f"calibration error of margins: {_number(report['calibration_error'], '.4f')}",
        f"correlation of reward and length: {_number(length['reward_with_tokens'])}, of margin and "
        f"length difference: {_number(length['margin_with_difference'])}; share of pairs of "
        f"different length that prefer the longer response: {_number(length['prefers_longer'])}",
        *_scores_lines(report["overall"]),
        f"rows: {report['rows_scored']:,} scored, {sum(report['rows_refused'].values()):,} refused",
    ]
    lines += [f"  refused {count:6d}  {why}" for why, count in report["rows_refused"].items()]
    unusable = report.get("rows_not_compared", {})
    lines += [f"  scored, but not compared {count:6d}  {why}" for why, count in unusable.items()]
    if report["benchmark"]:
        scores = (f"{name} {100 * score:.2f}" for name, score in report["benchmark"].items())
        lines += ["", "by the benchmark's own averages: " + ", ".join(scores)]
    return "\n".join(lines)


def _pairs_table(rows: Sequence[tuple[str, Figures]]) -> Iterator[str]:
    has_labelled_ties = any(figures["labelled_ties"] for _, figures in rows)
    header = ["", "pairs", "accuracy", "95% interval", "ties"]
    header += ["labelled ties"] if has_labelled_ties else []
    cells = [[*header, "Bradley-Terry loss", "margin"]]
    for name, figures in rows:
        labelled = [_number(figures["labelled_ties"], ".4f")] if has_labelled_ties else []
        cells.append(
            [
                name,
                f"{figures['pairs']:,}",
                _number(figures["accuracy"], ".4f"),
                _interval(figures, "accuracy", ".4f"),
                _number(figures["ties"], ".4f"),
                *labelled,
                _number(figures["bradley_terry_loss"], ".4f"),
                _number(figures["reward_margin"], "+.3f"),
            ]
        )
    yield from _align(cells)


def _lists_table(rows: Sequence[tuple[str, Figures]]) -> Iterator[str]:
    """Return a table of the rows that have lists, and the line before it; nothing if none has."""
    header = ["", "lists", "best of K", "95% interval", "by chance", "Kendall's tau"]
    cells = [[*header, "95% interval"]]
    for name, figures in rows:
        if lists := figures.get("lists"):
            cells.append(
                [
                    name,
                    f"{lists['lists']:,}",
                    _number(lists["best_of_k"], ".4f"),
                    _interval(lists, "best_of_k", ".4f"),
                    _number(lists["best_of_k_chance"], ".4f"),
                    _number(lists["kendall_tau"], "+.4f"),
                    _interval(lists, "kendall_tau", "+.4f"),
                ]
            )
    if len(cells) > 1:
        yield from ("", *_align(cells))


def _scores_lines(overall: Figures) -> Iterator[str]:
    if scores := overall.get("scores"):
        yield (
            f"rank correlation of reward and score: {_number(scores['spearman'])} over "
            f"{scores['responses']:,} responses"
        )


def _align(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return the lines of a table: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *figures in cells:
        right = (cell.rjust(width) for cell, width in zip(figures, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *right])


def _interval(figures: Figures, name: str, form: str) -> str:
    if figures[f"{name}_low"] is None:
        return "-"
    return f"{figures[f'{name}_low']:{form}} to {figures[f'{name}_high']:{form}}"


def _number(value: float | None, form: str = ".3f") -> str:
    return "unknown" if value is None else f"{value:{form}}"


def literal(text: str) -> str:
    """Return a text for a plot in which no dollar sign begins a formula."""
    return text.replace("$", r"\$")


def plot(groups: ScoredGroups, report: Figures, title: str, path: Path) -> None:
    """Plot rewards, calibration, length, and accuracy by label into an image file.

    If there are lists, two more plots show the best of K by K, and Kendall's tau.
    """
    pairs, has_lists = groups.pairs, "lists" in report["overall"]
    columns = 3 if has_lists else 2
    figure = Figure(figsize=(6.5 * columns, 8), layout="constrained")
    figure.suptitle(literal(title))
    panels = figure.subplots(2, columns)
    _draw_rewards(panels[0, 0], pairs)
    _draw_calibration(panels[0, 1], pairs, report)
    _draw_length(panels[1, 0], pairs)
    _draw_accuracies(panels[1, 1], report)
    if has_lists:
        _draw_best_of_k(panels[0, 2], groups)
        _draw_taus(panels[1, 2], groups)
    figure.savefig(path, dpi=110)


def _draw_rewards(axes: Axes, pairs: ScoredPairs) -> None:
    axes.set(title="rewards", xlabel="reward", ylabel="responses")
    if not len(pairs):
        return
    both = np.concatenate([pairs.chosen_rewards, pairs.rejected_rewards])
    bins = np.linspace(both.min(), both.max() + 1e-9, 41).tolist()
    tie = pairs.is_tie
    for rewards, label in ((pairs.chosen_rewards, "chosen"), (pairs.rejected_rewards, "rejected")):
        axes.hist(rewards[~tie], bins=bins, weights=pairs.weights[~tie], alpha=0.6, label=label)
    if tie.any():
        rewards, weights = both[np.tile(tie, 2)], np.tile(pairs.weights[tie], 2)
        axes.hist(rewards, bins=bins, weights=weights, histtype="step", color="C2", label="tied")
    if (pairs.weights != 1).any():
        axes.set_ylabel("responses, by the weight of their comparisons")
    axes.legend()


def _draw_calibration(axes: Axes, pairs: ScoredPairs, report: Figures) -> None:
    bins = report["calibration"]
    predicted = [each["predicted"] for each in bins]
    found = np.array([each["accuracy"] for each in bins])
    low = found - [each["accuracy_low"] for each in bins]
    high = np.array([each["accuracy_high"] for each in bins]) - found
    axes.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1)
    is_soft = bool((pairs.probabilities != 1).any())
    if is_soft:
        shown = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_POINTS)).astype(np.int64)
        points = predict(pairs[shown]), observe(pairs[shown])
        alpha = float(np.clip(100 / len(shown), 0.1, 0.6))
        axes.scatter(*points, s=8, alpha=alpha, color="C1", linewidths=0, label="labels")
    axes.errorbar(
        predicted,
        found,
        yerr=np.maximum([low, high], 0),
        fmt="o-",
        markersize=4,
        color="C0",
        label="mean of a bin, 95% interval",
    )
    observed = "labelled probability of the higher reward" if is_soft else "share correct"
    axes.set(title="calibration", xlabel="sigmoid of the margin", ylabel=observed)
    axes.grid(alpha=0.25)
    if is_soft:
        labels, *_ = axes.legend(fontsize=8).legend_handles
        assert labels is not None
        labels.set_alpha(1)


def _draw_length(axes: Axes, pairs: ScoredPairs) -> None:
    difference, tie = pairs.chosen_tokens - pairs.rejected_tokens, pairs.is_tie
    axes.scatter(difference[~tie], pairs.reward_margins[~tie], s=4, alpha=0.4)
    axes.axhline(0, color="grey", linewidth=1)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set(
        title="margin and length", xlabel="tokens, chosen minus rejected", ylabel="reward margin"
    )


def _draw_accuracies(axes: Axes, report: Figures) -> None:
    labels = report["by_subset"] or report["by_source"]
    found = {name: f for name, f in labels.items() if f["accuracy"] is not None}
    names = sorted(found, key=lambda name: found[name]["accuracy"])
    shares = np.array([found[name]["accuracy"] for name in names])
    low = shares - [found[name]["accuracy_low"] for name in names]
    high = np.array([found[name]["accuracy_high"] for name in names]) - shares
    axes.errorbar(shares, range(len(names)), xerr=np.maximum([low, high], 0), fmt="o")
    axes.set_yticks(range(len(names)), [literal(name[-40:]) for name in names], fontsize=8)
    axes.axvline(0.5, color="grey", linewidth=1)
    axes.set(title="accuracy, 95% interval", xlabel="accuracy")
    axes.grid(alpha=0.25)


def _draw_best_of_k(axes: Axes, groups: ScoredGroups) -> None:
    """Draw the share of lists whose best response has the highest reward, by their K."""
    shares, chance, compared = best_of_k(groups), best_of_k_chance(groups), count_compared(groups)
    known = ~np.isnan(shares)
    sizes = np.unique(compared[known])
    members = [known & (compared == size) for size in sizes]
    means = np.array([shares[each].mean() for each in members])
    bounds = np.array([mean_interval(shares[each]) for each in members]).reshape(-1, 2)
    error = np.maximum([means - bounds[:, 0], bounds[:, 1] - means], 0)
    axes.errorbar(sizes, means, yerr=error, fmt="o", label="best of K, 95% interval")
    by_chance = [chance[each].mean() for each in members]
    axes.plot(sizes, by_chance, "x--", color="grey", linewidth=1, label="by chance")
    axes.set_xticks(sizes, [f"{k}\n({m.sum():,})" for k, m in zip(sizes, members, strict=True)])
    axes.set(title="best of K", xlabel="K (lists)", ylabel="share of lists", ylim=(0, 1))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _draw_taus(axes: Axes, groups: ScoredGroups) -> None:
    taus = kendall_tau(groups)
    taus = taus[~np.isnan(taus)]
    axes.hist(taus, bins=np.linspace(-1, 1, 22).tolist(), alpha=0.6)
    axes.axvline(float(taus.mean()), color="C1", label=f"mean {taus.mean():+.3f}")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set(title="Kendall's tau", xlabel="tau of a list", ylabel="lists")
    axes.legend(fontsize=8)
