"""Raw rows -> rows of the token cache: token ids and hashes, or the reason for refusal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.config.sections.objective import Need
from rm_ray.data.cache.exclusions import NO_EXCLUSIONS, Exclusions
from rm_ray.data.cache.needs import find_lack
from rm_ray.data.cache.overlap import KEY, NO_KEYS, find_overlap, hash_group
from rm_ray.data.cache.token_parts import SCHEMA
from rm_ray.data.preferences.group_reading import parse_row
from rm_ray.data.rows.groups import Group
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.row_readings import RowReading
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer, TokenizedGroup

MOST_CHARACTERS = 2**24
"""Characters of raw rows that are tokenised together, some 4 million tokens: until they are in an
Arrow table, the tokenizer's records and Python's integers take about 100 bytes per token."""


def tokenize_block(
    batch: dict[str, np.ndarray],
    group_tokenizer: GroupTokenizer,
    origins: Sequence[str],
    held_out: np.ndarray = NO_KEYS,
    need: Need = "labels",
    exclusions: Exclusions = NO_EXCLUSIONS,
) -> pa.Table:
    """Convert a block of raw rows (``fragment``, ``row``, ``json``) to cache rows."""
    texts: list[str] = batch["json"].tolist()
    tables = []
    for part in _parts(texts):
        fragments = batch["fragment"][part]
        of_rows = [origins[i] for i in fragments]
        why = exclusions.find(fragments, batch["row"][part])
        rows = tokenize_rows(group_tokenizer, texts[part], of_rows, held_out, need, why)
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names[2:]}
        places = {"fragment": fragments, "row": batch["row"][part]}
        tables.append(pa.table({**places, **columns}, schema=SCHEMA))
    return pa.concat_tables(tables)


def _parts(texts: Sequence[str]) -> list[slice]:
    """Divide rows into runs that begin within ``MOST_CHARACTERS`` of each other."""
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    windows = (np.cumsum(sizes) - sizes) // MOST_CHARACTERS
    cuts = [0, *(np.flatnonzero(np.diff(windows)) + 1).tolist(), len(texts)]
    return [slice(first, end) for first, end in pairwise(cuts)]


def tokenize_rows(
    group_tokenizer: GroupTokenizer,
    texts: Sequence[str],
    origins: Sequence[str],
    held_out: np.ndarray = NO_KEYS,
    need: Need = "labels",
    excluded: Sequence[str | None] = (),
) -> list[dict[str, Any]]:
    """Convert raw JSON rows to cache rows; a refused row keeps its reason and raw text.

    Groups whose prompt is among the ``held_out`` keys are refused, and so are those that lack what
    the objective needs, unless they may get it from other rows of their prompt: these keep their
    raw text. ``excluded`` rows have a reason there, the others None; it may be left empty.
    """
    rules = group_tokenizer.config.rules
    parsed = [
        parse_row(text, origin, rules) if why is None else refuse_excluded(why)
        for text, origin, why in zip(texts, origins, excluded or [None] * len(texts), strict=True)
    ]
    tokenized = iter(group_tokenizer.tokenize([g for g, _ in parsed if isinstance(g, Group)]))
    rows: list[dict[str, Any]] = []
    for text, (group, reading) in zip(texts, parsed, strict=True):
        result = next(tokenized) if isinstance(group, Group) else group
        if isinstance(group, Group) and isinstance(result, TokenizedGroup):
            assert reading is not None
            rows.append(_to_row(group, result, reading))
            if lack := find_lack(rows[-1], need):
                rows[-1]["raw"] = text
                if not group_tokenizer.config.group_by_prompt:
                    rows[-1] |= {"reason": str(Reason.NOTHING_TO_LEARN), "detail": lack}
        else:
            assert isinstance(result, RefusedError)
            rows.append({"reason": str(result.reason), "detail": result.detail, "raw": text})
    return _refuse_held_out(rows, texts, held_out) if len(held_out) else rows


def _to_row(group: Group, tokens: TokenizedGroup, reading: RowReading) -> dict[str, Any]:
    if tokens.unwritten:
        reading = replace(reading, unwritten=tokens.unwritten)
    comparisons, scores = group.comparisons, group.scores
    total = math.fsum(each.weight for each in comparisons)
    return {
        "source": group.source,
        "prefix_length": tokens.prefix_length,
        "prompt_length": tokens.prompt_length,
        "ids": tokens.ids,
        "score": scores or [math.nan] * len(tokens.ids),
        "better": [each.better for each in comparisons],
        "worse": [each.worse for each in comparisons],
        "weight": [each.weight / total for each in comparisons],
        "margin": [each.margin for each in comparisons],
        "probability": [each.probability for each in comparisons],
        "reason": "",
        "reading": reading.to_json(),
        **hash_group(group),
    }


def _refuse_held_out(
    rows: list[dict[str, Any]], texts: Sequence[str], held_out: np.ndarray
) -> list[dict[str, Any]]:
    keys = np.array([row.get("prompt_hash", b"") for row in rows], dtype=KEY)
    refused = {"reason": str(Reason.HELD_OUT), "detail": ""}
    return [
        {**refused, "raw": text} if is_held_out and not row["reason"] else row
        for row, text, is_held_out in zip(rows, texts, find_overlap(keys, held_out), strict=True)
    ]


def refuse_excluded(why: str) -> tuple[RefusedError, None]:
    """Return the refusal of a row that ``data.exclude`` names."""
    return RefusedError(Reason.EXCLUDED, why), None
