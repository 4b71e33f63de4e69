"""Raw rows -> rows of the token cache: token ids and hashes, or the reason for refusal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from rm_ray.config.column_rules import ColumnRules
from rm_ray.data.cache.overlap import KEY, NO_KEYS, find_overlap, hash_pair
from rm_ray.data.cache.token_parts import SCHEMA
from rm_ray.data.rows.pairs import Pair, read_pair
from rm_ray.data.rows.refusals import Reason, RefusedError
from rm_ray.data.rows.row_readings import RowReading
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer, TokenizedPair


def tokenize_block(
    batch: dict[str, np.ndarray],
    pair_tokenizer: PairTokenizer,
    origins: Sequence[str],
    held_out: np.ndarray = NO_KEYS,
) -> pa.Table:
    """Convert a block of raw rows (``fragment``, ``row``, ``json``) to cache rows."""
    rows = tokenize_rows(
        pair_tokenizer, batch["json"].tolist(), [origins[i] for i in batch["fragment"]], held_out
    )
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names[2:]}
    return pa.table({"fragment": batch["fragment"], "row": batch["row"], **columns}, schema=SCHEMA)


def tokenize_rows(
    pair_tokenizer: PairTokenizer,
    texts: Sequence[str],
    origins: Sequence[str],
    held_out: np.ndarray = NO_KEYS,
) -> list[dict[str, Any]]:
    """Convert raw JSON rows to cache rows; a refused row keeps its reason and raw text.

    Pairs whose prompt is among the ``held_out`` keys are refused.
    """
    rules = pair_tokenizer.config.rules
    parsed = [
        parse_pair_row(text, origin, rules) for text, origin in zip(texts, origins, strict=True)
    ]
    tokenized = iter(pair_tokenizer.tokenize([p for p, _ in parsed if isinstance(p, Pair)]))
    rows: list[dict[str, Any]] = []
    for text, (pair, reading) in zip(texts, parsed, strict=True):
        result = next(tokenized) if isinstance(pair, Pair) else pair
        if isinstance(pair, Pair) and isinstance(result, TokenizedPair):
            assert reading is not None
            rows.append(_to_row(pair, result, reading))
        else:
            assert isinstance(result, RefusedError)
            rows.append({"reason": str(result.reason), "detail": result.detail, "raw": text})
    return _refuse_held_out(rows, texts, held_out) if len(held_out) else rows


def _to_row(pair: Pair, tokens: TokenizedPair, reading: RowReading) -> dict[str, Any]:
    if tokens.unwritten:
        reading = replace(reading, unwritten=tokens.unwritten)
    return {
        "source": pair.source,
        "margin": pair.margin,
        "prefix_length": tokens.prefix_length,
        "prompt_length": tokens.prompt_length,
        "chosen_ids": tokens.chosen_ids,
        "rejected_ids": tokens.rejected_ids,
        "reason": "",
        "reading": reading.to_json(),
        **hash_pair(pair),
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


def parse_pair_row(
    text: str, origin: str, rules: ColumnRules
) -> tuple[Pair | RefusedError, RowReading | None]:
    """Return the pair of a raw JSON row and its reading, or the refusal and None."""
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            return RefusedError(Reason.NOT_MESSAGES, f"the row is a {type(row).__name__}"), None
        return read_pair(row, origin, rules)
    except RefusedError as refusal:
        return refusal, None
    except RecursionError:
        return RefusedError(Reason.NOT_MESSAGES, "a value is nested too deeply"), None
