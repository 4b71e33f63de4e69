"""The report of an audit as Markdown, and its summary for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

MOST_LINES = 20
"""Sources, languages and writers that a table names."""

_MEANINGS = {
    "duplicates": "repeat the prompt, responses and labels of an earlier row",
    "near_duplicates": "resemble an earlier row in prompt and responses",
    "contradictions": "prefer one response where another row prefers the other",
    "contaminated": "share a prompt, a 13-gram or most 8-grams with an evaluation set",
    "mislabelled": "have a label that the models in --model disagree with",
}


def summarize(report: Report) -> str:
    """Return the summary for the terminal."""
    lines = [f"{report['rows_read']:,} of {report['rows']:,} rows read"]
    lines += [f"  refused {n:8,}  {why}" for why, n in report["rows_refused"].items()]
    for kind, found in report["findings"].items():
        meaning = _MEANINGS.get(kind, "")
        lines.append(f"{found['rows']:9,} {_name(kind):16} {found['share']:7.2%}  {meaning}")
    lines += [f"  {line}" for line in _limits(report)]
    for name, each in report["evaluation_sets"].items():
        shared = ", ".join(f"{how} {n:,}" for how, n in each["shared_by"].items()) or "nothing"
        lines.append(f"shared with {name} ({each['rows']:,} rows), in rows by what: {shared}")
    lines += ["", *align([("without a model", "share", "95% interval", "pairs"), *_rules(report)])]
    languages = list(report["languages"].items())[:5]
    named = ", ".join(f"{name} {n / report['rows_read']:.1%}" for name, n in languages)
    lines += ["", f"languages: {named}"]
    words = ((name, report["lengths"][name]) for name in ("prompt", "better", "worse"))
    lines.append(
        "median words: "
        + ", ".join(f"{name} {each['p50']:,}" for name, each in words if each["rows"])
    )
    return "\n".join(lines)


def write_page(report: Report, title: str) -> str:
    """Return the whole report as Markdown."""
    return "\n".join([f"# {title}", "", *_page(report)]) + "\n"


def _page(report: Report) -> Iterator[str]:
    yield f"{report['rows_read']:,} of {report['rows']:,} rows were read. ![plots](plots/audit.png)"
    if refused := report["rows_refused"]:
        yield from _table(("refused because", "rows"), refused.items())
    yield from _findings(report)
    if report["evaluation_sets"]:
        yield from ("", "## Evaluation sets")
        kinds = ("prompt", "13-gram", "8-grams")
        yield from _table(
            ("set", "rows", *(f"rows here that share: {kind}" for kind in kinds)),
            (
                (name, each["rows"], *(each["shared_by"].get(kind, 0) for kind in kinds))
                for name, each in report["evaluation_sets"].items()
            ),
        )
    yield from ("", "## Baselines without a model")
    yield from _table(("rule", "share right", "95% interval", "pairs"), _rules(report))
    if len(report["by_source"]) > 1:
        for name, rule in report["rules"].items():
            sources = [(source, *_share(each)) for source, each in rule["by_source"].items()]
            if sources:
                yield from ("", f"### {name.capitalize()}, by source")
                yield from _table(("source", "share right", "95% interval", "pairs"), sources)
    if writers := report["writers"]["by_writer"]:
        yield from ("", "### By what wrote the response")
        rows = [(name, *_share(each)) for name, each in writers.items()]
        yield from _table(("writer", "share won", "95% interval", "pairs"), rows)
        if beyond := report["writers"]["pairs_beyond_names"]:
            yield from ("", f"{beyond:,} pairs are of more pairs of writers than are counted.")
    yield from ("", "## What the data is")
    yield from _table(("source", "rows"), report["by_source"].items())
    yield from _table(("language", "rows"), report["languages"].items())
    yield from _table(
        ("words of", "rows", "mean", "10%", "median", "90%"),
        (
            (name, each["rows"], f"{each['mean']:.1f}", each["p10"], each["p50"], each["p90"])
            for name, each in report["lengths"].items()
            if each["rows"]
        ),
    )


def _limits(report: Report) -> Iterator[str]:
    """Yield what the findings may lack."""
    if (examined := report["rows_examined_by_models"]) is not None:
        yield f"mislabelled: of the {examined:,} rows that every model has a loss of"
    if left := report["rows_with_unfound_near_duplicates"]:
        yield f"near duplicates: {left:,} rows or fewer may have some that were not found"


def _findings(report: Report) -> Iterator[str]:
    yield from ("", "## Findings")
    yield from _table(
        ("kind", "rows", "share", "they", "file"),
        (
            (_name(kind), each["rows"], f"{each['share']:.2%}", _MEANINGS.get(kind, ""),
             f"`{each['file']}`")
            for kind, each in report["findings"].items()
        ),
    )  # fmt: skip
    for line in _limits(report):
        yield from ("", f"{line.capitalize()}.")
    for kind, each in report["findings"].items():
        if each["examples"]:
            yield from ("", f"First {_name(kind)}:", "")
            for found in each["examples"]:
                yield f"- row {found['row']} of {found['source']}: {found['detail']}"


def _rules(report: Report) -> list[tuple[str, ...]]:
    rules = [*report["rules"].values(), report["writers"]]
    return [(each["rule"], *_share(each)) for each in rules if each["pairs"]]


def _share(figures: Report) -> tuple[str, str, str]:
    low, high = figures["share_low"], figures["share_high"]
    share = "-" if figures["share"] is None else f"{figures['share']:.3f}"
    return share, f"{low:.3f} to {high:.3f}", f"{figures['pairs']:,.0f}"


def _name(kind: str) -> str:
    return kind.replace("_", " ")


def _table(header: Sequence[str], rows: Any) -> Iterator[str]:
    listed = [[*map(_cell, row)] for row in rows]
    yield from ("", _line(header), _line(["---"] * len(header)))
    yield from map(_line, listed[:MOST_LINES])
    if len(listed) > MOST_LINES:
        yield _line([f"and {len(listed) - MOST_LINES:,} more", *[""] * (len(header) - 1)])


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def align(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]).rstrip()
        for name, *figures in cells
    ]
