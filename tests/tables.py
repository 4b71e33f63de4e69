"""Token tables for tests, made in this process instead of by Ray Data."""

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from made_cache import NO_SCORE, Row, group_row

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import Collator, ReadyMicroBatch
from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.cache.token_parts import SCHEMA, TABLE_COLUMNS
from rm_ray.data.cache.token_table import TokenTable, map_table, write_table
from rm_ray.data.sources.planted import generate_rows
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_table(
    folder: Path, rows: Iterable[dict[str, Any]], tokenizer: Any, **limits: Any
) -> TokenTable:
    """Tokenise raw rows and map them; refused rows are left out."""
    texts = [json.dumps(row) for row in rows]
    group_tokenizer = GroupTokenizer(tokenizer, DataConfig(**limits))
    cached = [
        {"fragment": 0, "row": i, **row}
        for i, row in enumerate(tokenize_rows(group_tokenizer, texts, ["rows"] * len(texts)))
        if not row["reason"]
    ]
    return map_rows(folder, cached, origins=("rows",))


def map_rows(
    folder: Path, rows: Sequence[Mapping[str, Any]], *, origins: Sequence[str]
) -> TokenTable:
    """Write accepted cache rows as a table, and map it."""
    schema = pa.schema([SCHEMA.field(name) for name in TABLE_COLUMNS])
    columns = {name: [row[name] for row in rows] for name in TABLE_COLUMNS}
    write_table([pa.record_batch(columns, schema=schema)], origins, folder)
    return map_table(folder)


def read_rows(table: TokenTable) -> list[Row]:
    """Return the rows that a table was written from, in its order."""
    rows, columns = [], table.columns
    for group in range(len(table)):
        ids = [each.tolist() for each in table.gather(np.array([group])).conversations(0)]
        one = columns[np.array([group])]
        comparisons = list(zip(one.better.tolist(), one.worse.tolist(), strict=True))
        about = {name: getattr(one, name).tolist() for name in ("weight", "margin", "probability")}
        scores = one.score.tolist()
        place = int(table.fragment[group]), int(table.row[group])
        rows.append(
            group_row(
                *place,
                ids,
                comparisons,
                **about,
                score=[NO_SCORE if math.isnan(score) else score for score in scores],
                prefix_length=int(one.prefix_length[0]),
                prompt_length=int(one.prompt_length[0]),
                source=table.sources[table.source[group]],
            )
        )
    return rows


def builtin_table(folder: Path, count: int, split: str = "train") -> tuple[TokenTable, Any]:
    """Return a table of generated pairs and their tokenizer."""
    tokenizer = load_tokenizer("builtin")
    return make_table(folder, generate_pairs(split, count), tokenizer), tokenizer


def lists_table(folder: Path, count: int) -> tuple[TokenTable, Any]:
    """Return a table of groups of 1 to 5 responses and their tokenizer.

    Most of a group's responses are compared: sure labels with and without a margin, soft ones and
    ties, which weigh differently. They have scores, but for every seventh group.
    """
    tokenizer = load_tokenizer("builtin")
    scored = [
        row | {name: row[name][: 1 + i % 5] for name in ("responses", "scores")}
        for i, row in enumerate(generate_rows("scores", count))
    ]
    rows = read_rows(make_table(folder.with_name(f"{folder.name}-scored"), scored, tokenizer))
    rng = random.Random(0)
    return map_rows(folder, [_compare(row, rng) for row in rows], origins=("rows",)), tokenizer


def _compare(row: Row, rng: random.Random) -> Row:
    """Return a group with drawn comparisons, of most of its responses, in place of its own."""
    pairs = [
        rng.sample(pair, 2)
        for pair in combinations(range(len(row["ids"])), 2)
        if rng.random() < 0.8
    ]
    weights = [rng.choice((1, 2, 3)) for _ in pairs]
    scores = row["score"] if row["row"] % 7 else [NO_SCORE] * len(row["ids"])
    return row | {
        "better": [better for better, _ in pairs],
        "worse": [worse for _, worse in pairs],
        "weight": [weight / sum(weights) for weight in weights],
        "margin": [rng.choice((0.0, 0.0, 0.5, 1.5)) for _ in pairs],
        "probability": [rng.choice((1.0, 1.0, 0.875, 0.5)) for _ in pairs],
        "score": scores,
    }


def chosen_ids(table: TokenTable, pair: int) -> np.ndarray:
    """Return the ids of a pair's chosen conversation."""
    return table.gather(np.array([pair])).conversation(0, 0)


def rejected_ids(table: TokenTable, pair: int) -> np.ndarray:
    """Return the ids of a pair's rejected conversation."""
    return table.gather(np.array([pair])).conversation(0, 1)


def ready_step(
    table: TokenTable,
    plan: Plan,
    step: int,
    tokenizer: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    kernel: Kernel = "grouped",
) -> list[ReadyMicroBatch]:
    """Load a step and lay it out on the CPU, as its plan's layout asks."""
    collator = Collator(
        layout=plan.settings.layout,
        kernel=kernel,
        pad_token_id=tokenizer.pad_token_id,
        device=torch.device("cpu"),
    )
    return collator.lay_out(load_step(table, plan, step, rank=rank, world_size=world_size))
