"""Token tables for tests, made in this process instead of by Ray Data."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rm_ray.batches.attention_index import Kernel
from rm_ray.batches.collate import Collator, ReadyMicroBatch
from rm_ray.batches.loading import load_step
from rm_ray.batches.plan import Plan
from rm_ray.config.sections.data import DataConfig
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.cache.token_parts import SCHEMA, TABLE_COLUMNS
from rm_ray.data.cache.token_table import TokenTable, map_table, write_table
from rm_ray.data.sources.synthetic import generate_pairs
from rm_ray.data.tokens.pair_tokenizer import PairTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def make_table(
    folder: Path, rows: Iterable[dict[str, Any]], tokenizer: Any, **limits: Any
) -> TokenTable:
    """Tokenise raw rows and map them; refused rows are left out."""
    texts = [json.dumps(row) for row in rows]
    pair_tokenizer = PairTokenizer(tokenizer, DataConfig(**limits))
    cached = [
        {"fragment": 0, "row": i, **row}
        for i, row in enumerate(tokenize_rows(pair_tokenizer, texts, ["rows"] * len(texts)))
        if not row["reason"]
    ]
    schema = pa.schema([SCHEMA.field(name) for name in TABLE_COLUMNS])
    columns = {name: [row[name] for row in cached] for name in TABLE_COLUMNS}
    batch = pa.record_batch(columns, schema=schema)
    write_table([batch], ("rows",), folder)
    return map_table(folder)


def chosen_ids(table: TokenTable, pair: int) -> np.ndarray:
    """Return the ids of a pair's chosen conversation."""
    return table.gather(np.array([pair])).chosen(0)


def rejected_ids(table: TokenTable, pair: int) -> np.ndarray:
    """Return the ids of a pair's rejected conversation."""
    return table.gather(np.array([pair])).rejected(0)


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


def builtin_table(folder: Path, count: int, split: str = "train") -> tuple[TokenTable, Any]:
    """Return a table of generated pairs and their tokenizer."""
    tokenizer = load_tokenizer("builtin")
    return make_table(folder, generate_pairs(split, count), tokenizer), tokenizer
