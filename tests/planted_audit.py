"""Preference data with planted duplicates, near duplicates, contradictions and leaks."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]

NUM_PLAIN = 400
"""Rows that nothing is wrong with, the first ones of the file."""

PLANTED = {"duplicates": 30, "contradictions": 20, "near_duplicates": 25, "contaminated": 12}


def words(rng: np.random.Generator, count: int) -> list[str]:
    return [f"word{i}" for i in rng.integers(0, 20_000, count)]


def plain_rows(count: int, seed: int) -> Iterator[Row]:
    """Yield random pairs, of which the chosen response is the longer one three times of four."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        sides = [" ".join(words(rng, size)) for size in (60, 40)]
        chosen, rejected = sides if i % 4 else sides[::-1]
        yield {"prompt": " ".join(words(rng, 25)), "chosen": chosen, "rejected": rejected}


def planted_rows() -> list[Row]:
    """Return plain rows, and after them those that each repeat, change or reverse one of them."""
    rows = list(plain_rows(NUM_PLAIN, seed=0))
    first = iter(rows.copy())
    rows += [dict(row) for row in islice(first, PLANTED["duplicates"])]
    rows += [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in islice(first, PLANTED["contradictions"])
    ]
    for row in islice(first, PLANTED["near_duplicates"]):
        rows.append(
            {**row, "chosen": f"{row['chosen']} indeed", "prompt": f"Please: {row['prompt']}"}
        )
    return rows


def evaluation_rows() -> list[Row]:
    """Return an evaluation set: the last plain rows have some of its prompts, or parts of them."""
    rng = np.random.default_rng(1)
    rows = list(plain_rows(NUM_PLAIN, seed=0))[-PLANTED["contaminated"] :]
    leaked = [row["prompt"] for row in rows]
    third = len(leaked) // 3
    prompts = leaked[:third]  # whole
    prompts += [" ".join([*words(rng, 9), *p.split()[:14]]) for p in leaked[third : 2 * third]]
    prompts += [  # 8-grams of 16 words in 20
        " ".join([*p.split()[:8], *words(rng, 4), *p.split()[12:20]]) for p in leaked[2 * third :]
    ]
    prompts += [" ".join(words(rng, 20)) for _ in range(50)]
    return [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in prompts]


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
