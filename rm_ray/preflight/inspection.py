"""Data sources as training would read them: rows as messages, text and tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.cache.pair_tokens import common_prefix
from rm_ray.data.rows.column_readings import (
    ColumnReading,
    describe_all,
    refuse_lost_columns,
    sum_up,
)
from rm_ray.data.rows.pairs import parse_pair
from rm_ray.data.sources import mixture
from rm_ray.data.sources.discovery import locate
from rm_ray.data.sources.source_spec import SourceSpec
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer
from rm_ray.preflight.report.histogram import histogram

ROWS_AT_ONCE = 256
"""Rows tokenised together."""


@dataclass(kw_only=True)
class SourceFinding:
    """Counts over all rows of a source that training would use, and its first rows."""

    source: str
    read_as: str
    rows: int = 0
    pairs: int = 0
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
            "pairs": self.pairs,
            "refused": dict(self.refused.most_common()),
        }

    def describe(self) -> str:
        """Return counts, example rows and a histogram of lengths as text."""
        lines = [f"{self.source}: {self.read_as}"]
        lines += [f"  {line}" for line in describe_all(self.readings)]
        lines.append(f"  {self.pairs:,} pairs of {self.rows:,} rows")
        lines += [f"  refused {count:6d}  {why}" for why, count in self.refused.most_common()]
        for row in self.examples:
            lines += ["", *_describe_row(row)]
        if self.lengths:
            lines += ["", "tokens per conversation:"]
            lines += [f"  {line}" for line in histogram(np.array(self.lengths))]
        return "\n".join(lines)


def inspect_source(
    text: str, data: DataConfig, tokenizer: PairTokenizer, *, seed: int, num_examples: int
) -> SourceFinding:
    """Read, check and tokenise a source as training would, in this process.

    Raises:
        InputError: the source cannot be read.
    """
    spec = SourceSpec.parse(text)
    finding = SourceFinding(source=text, read_as=locate(spec).read_as)
    for selection in mixture.select([spec], seed, rules=data.rules):
        origin = selection.fragment.origin
        counts: Counter[str] = Counter()
        for block in _blocks(mixture.read_selected(selection)):
            texts = [text for _, text in block]
            tokenized = tokenize_rows(tokenizer, texts, [origin] * len(texts))
            for (number, raw), row in zip(block, tokenized, strict=True):
                finding.rows += 1
                if row["reason"]:
                    finding.refused[row["reason"]] += 1
                else:
                    finding.pairs += 1
                    counts[row["reading"]] += 1
                    finding.lengths += [len(row["chosen_ids"]), len(row["rejected_ids"])]
                if len(finding.examples) < num_examples:
                    about = {"source": text, "row": number}
                    shown = _refusal(row) if row["reason"] else _pair(raw, row, tokenizer, origin)
                    finding.examples.append({**about, **shown})
        finding.readings.append(sum_up(origin, counts))
    return finding


def refuse_lost(findings: Sequence[SourceFinding]) -> None:
    """Refuse sources with an unused conversation column, as training would.

    Raises:
        InputError: a column is unused; the message names source and columns.
    """
    refuse_lost_columns(reading for finding in findings for reading in finding.readings)


def _blocks(rows: Iterator[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    while block := list(islice(rows, ROWS_AT_ONCE)):
        yield block


def _refusal(row: dict[str, Any]) -> dict[str, Any]:
    return {"refused": row["reason"], "detail": row["detail"]}


def _pair(raw: str, row: dict[str, Any], tokenizer: PairTokenizer, origin: str) -> dict[str, Any]:
    """Return a pair as messages and as the text that is trained on."""
    pair = parse_pair(json.loads(raw), origin, tokenizer.config.rules)
    shown: dict[str, Any] = {}
    for side, messages in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        ids = row[f"{side}_ids"]
        (text,) = tokenizer.renderer.render([messages], [pair.context])
        if len(tokenizer.encode([text])[0].ids) != len(ids):  # truncated
            text = tokenizer.tokenizer.decode(ids)
        shown[side] = {"messages": messages, "text": text, "num_tokens": len(ids)}
    shown["margin"] = pair.margin
    if pair.context.tools is not None:
        shown["tools"] = pair.context.tools
    return shown


def _describe_row(row: dict[str, Any]) -> list[str]:
    title = f"row {row['row']} of {row['source']}"
    if "refused" in row:
        return [
            f"{title}: refused, {row['refused']}" + (f": {row['detail']}" * bool(row["detail"]))
        ]
    sides = [row["chosen"], row["rejected"]]
    first, second = (side["text"] for side in sides)
    shared = first[: common_prefix([*map(ord, first)], [*map(ord, second)])]
    tokens = ", ".join(
        f"{name} {side['num_tokens']} tokens"
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    )
    lines = [f"{title}: {tokens}, margin {row['margin']:g}"]
    if "tools" in row:
        lines.append(f"  tools: {json.dumps(row['tools'], ensure_ascii=False)}")
    *prompt, chosen = sides[0]["messages"]
    for name, messages in (
        ("", prompt),
        ("chosen ", [chosen]),
        ("rejected ", sides[1]["messages"][-1:]),
    ):
        lines += [f"  {name}message: {json.dumps(m, ensure_ascii=False)}" for m in messages]
    lines += ["  shared text:", *_indented(shared)]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        lines += [f"  {name} text after it:", *_indented(side["text"][len(shared) :])]
    return lines


def _indented(text: str) -> list[str]:
    return [f"    | {line}" for line in text.split("\n")]
