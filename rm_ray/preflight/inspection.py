"""Data sources as training would read them: rows as messages, text and tokens."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.cache.exclusions import NO_EXCLUSIONS, Exclusions
from rm_ray.data.cache.group_tokens import common_prefix
from rm_ray.data.cache.grouping import GroupLimits, RowLabels, combine, divide
from rm_ray.data.cache.needs import find_lack
from rm_ray.data.preferences.group_reading import read_group
from rm_ray.data.rows.column_readings import (
    ColumnReading,
    describe_all,
    refuse_lost_columns,
    sum_up,
)
from rm_ray.data.rows.groups import TIE
from rm_ray.data.rows.refusals import Reason
from rm_ray.data.sources import mixture
from rm_ray.data.sources.discovery import locate
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.errors import InputError
from rm_ray.preflight.report.histogram import histogram

ROWS_AT_ONCE = 256
"""Rows tokenised together."""


@dataclass(kw_only=True)
class SourceFinding:
    """Counts over all rows of a source that training would use, and its first rows."""

    source: str
    read_as: str
    rows: int = 0
    groups: int = 0
    unit: str = "pairs"
    """'groups' once a row is no plain pair."""
    grouped: int | None = None
    """Groups that training makes of the rows' prompts; None if it does not group them."""
    refused: Counter[str] = field(default_factory=Counter)
    readings: list[ColumnReading] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Tokens of each conversation that would be trained on."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """The first rows in order, refused ones included."""

    def to_json(self) -> dict[str, Any]:
        """Return the counts, and the columns used for each part of a pair."""
        used: dict[str, list[str]] = {}
        for reading in self.readings:
            for part, columns in reading.used.items():
                known = used.setdefault(part, [])
                known += [name for name in columns if name not in known]
        unused = dict.fromkeys(name for reading in self.readings for name in reading.left)
        return {
            "source": self.source,
            "read_as": "; ".join([self.read_as, *describe_all(self.readings)]),
            "used": used,
            "not_used": list(unused),
            "rows": self.rows,
            self.unit: self.groups,
            **({} if self.grouped is None else {"grouped_by_prompt": self.grouped}),
            "refused": dict(self.refused.most_common()),
        }

    def describe(self) -> str:
        """Return counts, example rows and a histogram of lengths as text."""
        lines = [f"{self.source}: {self.read_as}"]
        lines += [f"  {line}" for line in describe_all(self.readings)]
        lines.append(f"  {self.groups:,} {self.unit} of {self.rows:,} rows")
        if self.grouped is not None:
            lines.append(f"  grouped by prompt: {self.grouped:,} groups")
        lines += [f"  refused {count:6d}  {why}" for why, count in self.refused.most_common()]
        for row in self.examples:
            lines += ["", *_describe_row(row)]
        if self.lengths:
            lines += ["", "tokens per conversation:"]
            lines += [f"  {line}" for line in histogram(np.array(self.lengths))]
        return "\n".join(lines)


def inspect_source(
    text: str,
    data: DataConfig,
    tokenizer: GroupTokenizer,
    *,
    limits: GroupLimits,
    seed: int,
    num_examples: int,
    exclusions: Exclusions = NO_EXCLUSIONS,
) -> SourceFinding:
    """Read, check and tokenise a source as training would, in this process.

    With ``data.group_by_prompt`` its rows are grouped within the limits, in memory and without
    their tokens; the examples stay rows.

    Raises:
        InputError: the source cannot be read.
    """
    spec = SourceSpec.parse(text)
    finding = SourceFinding(source=text, read_as=locate(spec).read_as)
    by_prompt: dict[tuple[str, bytes], list[RowLabels]] = {}
    for selection in mixture.select([spec], seed, rules=data.rules):
        origin = selection.fragment.origin
        counts: Counter[str] = Counter()
        first_rows: dict[str, int] = {}
        for block in _blocks(mixture.read_selected(selection)):
            texts = [text for _, text in block]
            why = exclusions.find_in(origin, np.array([number for number, _ in block]))
            origins = [origin] * len(texts)
            tokenized = tokenize_rows(tokenizer, texts, origins, need=limits.need, excluded=why)
            for (number, raw), row in zip(block, tokenized, strict=True):
                finding.rows += 1
                if row["reason"]:
                    finding.refused[row["reason"]] += 1
                else:
                    finding.groups += 1
                    if len(row["ids"]) != 2 or len(row["better"]) != 1:
                        finding.unit = "groups"
                    counts[row["reading"]] += 1
                    first_rows.setdefault(row["reading"], number)
                    finding.lengths += map(len, row["ids"])
                    if data.group_by_prompt:
                        named = row["source"] if row["source"] != origin else ""
                        alike = by_prompt.setdefault((named, row["group_hash"]), [])
                        alike.append(RowLabels.of(row))
                if len(finding.examples) < num_examples:
                    about = {"source": text, "row": number}
                    shown = _refusal(row) if row["reason"] else _group(raw, row, tokenizer, origin)
                    finding.examples.append({**about, **shown})
        finding.readings.append(sum_up(origin, counts, first_rows))
    if data.group_by_prompt:
        finding.grouped = 0
        for rows in by_prompt.values():
            _count_groups(rows, limits, finding)
    return finding


def _count_groups(rows: Sequence[RowLabels], limits: GroupLimits, finding: SourceFinding) -> None:
    """Add the groups of a prompt to a finding, and the rows of those that are refused."""
    assert finding.grouped is not None
    for group in divide(rows, limits):
        positions = {key: place for place, key in enumerate(group.places)}
        labels = combine([rows[index] for index in group.rows], positions)
        if find_lack(labels.columns, limits.need) is None:
            finding.grouped += 1
        else:
            finding.refused[str(Reason.NOTHING_TO_LEARN)] += len(group.rows)
            finding.groups -= len(group.rows)


def refuse_lost(findings: Sequence[SourceFinding]) -> None:
    """Refuse sources with an unused conversation column, as training would.

    Raises:
        InputError: a column is unused; the message names source and columns.
    """
    refuse_lost_columns(reading for finding in findings for reading in finding.readings)


def refuse_empty(findings: Sequence[SourceFinding]) -> None:
    """Refuse sources of which every row is refused, as training would.

    Raises:
        InputError: nothing is left; the message has the number of rows by reason.
    """
    if not any(finding.groups for finding in findings):
        refused = sum((finding.refused for finding in findings), Counter[str]())
        reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
        rows = sum(finding.rows for finding in findings)
        if not rows:
            raise InputError("there is nothing to train on: the sources have no rows")
        raise InputError(
            f"nothing is left to train on; all {rows} rows were refused ({reasons}). The reasons "
            "are explained in rm_ray/data/README.md"
        )


def _blocks(rows: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while block := list(islice(rows, ROWS_AT_ONCE)):
        yield block


def _refusal(row: dict[str, Any]) -> dict[str, Any]:
    return {"refused": row["reason"], "detail": row["detail"]}


def _group(raw: str, row: dict[str, Any], tokenizer: GroupTokenizer, origin: str) -> dict[str, Any]:
    """Return a group as messages and as the text that is trained on; a pair by its sides."""
    group, _ = read_group(json.loads(raw), origin, tokenizer.config.rules)
    sides = []
    for messages, ids in zip(group.conversations, row["ids"], strict=True):
        (text,) = tokenizer.renderer.render([messages], [group.context])
        if len(tokenizer.encode([text])[0].ids) != len(ids):  # truncated
            text = tokenizer.tokenizer.decode(ids)
        sides.append({"messages": messages, "text": text, "num_tokens": len(ids)})
    tools = {} if group.context.tools is None else {"tools": group.context.tools}
    is_won = len(group.comparisons) == 1 and group.comparisons[0].probability == 1
    if len(sides) == 2 and is_won and group.scores is None:
        (only,) = group.comparisons
        return {
            "chosen": sides[only.better],
            "rejected": sides[only.worse],
            "margin": only.margin,
            **tools,
        }
    for side, score in zip(sides, group.scores or (), strict=False):
        if not math.isnan(score):
            side["score"] = score
    return {"responses": sides, "comparisons": [asdict(c) for c in group.comparisons], **tools}


def _describe_row(row: dict[str, Any]) -> list[str]:
    title = f"row {row['row']} of {row['source']}"
    if "refused" in row:
        return [
            f"{title}: refused, {row['refused']}" + (f": {row['detail']}" * bool(row["detail"]))
        ]
    names = ["chosen", "rejected"]
    if "responses" in row:
        names = [f"response {i}" for i in range(1, len(row["responses"]) + 1)]
    sides = row.get("responses") or [row[name] for name in names]
    shared = _shared_text([side["text"] for side in sides])
    tokens = ", ".join(
        f"{name} {side['num_tokens']} tokens" for name, side in zip(names, sides, strict=True)
    )
    about = f", margin {row['margin']:g}" if "margin" in row else ""
    lines = [f"{title}: {tokens}{about}"]
    if "responses" in row:
        lines.append(f"  {_describe_labels(row)}")
    if "tools" in row:
        lines.append(f"  tools: {json.dumps(row['tools'], ensure_ascii=False)}")
    *prompt, _ = sides[0]["messages"]
    shown = [("", message) for message in prompt]
    shown += [(f"{name} ", side["messages"][-1]) for name, side in zip(names, sides, strict=True)]
    lines += [f"  {name}message: {json.dumps(m, ensure_ascii=False)}" for name, m in shown]
    if len(sides) == 1:
        return [*lines, "  text:", *_indented(sides[0]["text"])]
    lines += ["  shared text:", *_indented(shared)]
    for name, side in zip(names, sides, strict=True):
        lines += [f"  {name} text after it:", *_indented(side["text"][len(shared) :])]
    return lines


def _describe_labels(row: dict[str, Any]) -> str:
    """Return the comparisons and scores of a row of responses."""
    compared = [_describe_comparison(each) for each in row["comparisons"]]
    scores = [f"{side['score']:g}" if "score" in side else "-" for side in row["responses"]]
    parts = ["compared: " + ("; ".join(compared) or "none")]
    if any(score != "-" for score in scores):
        parts.append(f"scores: {', '.join(scores)}")
    return "; ".join(parts)


def _describe_comparison(comparison: dict[str, Any]) -> str:
    better, worse, probability = (comparison[n] for n in ("better", "worse", "probability"))
    if probability == TIE:
        return f"{better + 1} ties with {worse + 1}"
    likely = f" with probability {probability:g}" if probability < 1 else ""
    margin = f" by {comparison['margin']:g}" if comparison["margin"] else ""
    return f"{better + 1} beats {worse + 1}{margin}{likely}"


def _shared_text(texts: Sequence[str]) -> str:
    """Return the characters that all texts begin with."""
    codes = [[*map(ord, text)] for text in texts]
    return texts[0][: min((common_prefix(codes[0], other) for other in codes[1:]), default=0)]


def _indented(text: str) -> list[str]:
    return [f"    | {line}" for line in text.split("\n")]
