"""Pairs per second that a core tokenises: the token cache's work against ``datasets.map``.

Both turn the same pairs into the same token ids, in turn, each in a process of its own that keeps
to one core and one thread. Ours starts from raw JSON rows, checks them and ends in Arrow, as a Ray
Data task does; ``datasets.map(batched=True)`` starts from a loaded ``Dataset`` and is asked for the
ids alone. Then ours again: one process against two that have half of the rows each.

    python tests/benchmarks/tokenising.py [--turns 5] [--tokenizer builtin]

The built-in tokenizer takes the generated pairs, which are short; the others take the real ones
where they are at hand. The speed of a core is per second of processor time, which other work on the
machine has little part in; one and two processes are also compared by the clock, which wants a
machine that does nothing else.
"""

import argparse
import functools
import gc
import gzip
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from machine import ROOT, describe_machine

sys.path.insert(0, str(ROOT))

SHARED_DATA = ROOT.parent / "shared" / "data"

ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one process did once; ``began`` and ``ended`` are by the clock of the machine."""

    num_pairs: int
    num_tokens: int
    digest: str
    processor_s: float
    began: float
    ended: float


def main() -> None:
    """Take the turns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--tokenizer", nargs="+", default=default_tokenizers())
    options = parser.parse_args()
    os.environ.update(ONE_THREAD)
    results = [measure(name, options.turns) for name in options.tokenizer]
    print(f"{describe_machine()}; {options.turns} turns, medians (least to most)\n")
    print("| tokenizer | | pairs/s of a core | tokens/s of a core |\n|---|---|---|---|")
    for result in results:
        for title in ("ours", "datasets.map"):
            pairs, tokens = (result[title][f"{unit}_per_s"] for unit in ("pairs", "tokens"))
            spread = f"{pairs[1]:,.0f} ({pairs[0]:,.0f} to {pairs[2]:,.0f})"
            print(f"| {result['tokenizer']} | {title} | {spread} | {tokens[1]:,.0f} |")
    print("\n| tokenizer | pairs | ours / datasets.map | two processes / one, processor | clock |")
    print("|---|---|---|---|---|")
    for result in results:
        ratios = ("against_datasets_map", "two_by_processor", "two_by_clock")
        cells = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*result[ratio]) for ratio in ratios]
        print(f"| {result['tokenizer']} | {result['num_pairs']:,} | {' | '.join(cells)} |")
    print(f"\n{json.dumps(results)}")


def default_tokenizers() -> list[str]:
    """Return the built-in tokenizer and those that came with the real pairs."""
    return ["builtin", *map(str, sorted(SHARED_DATA.glob("tokenizer_*")))]


def measure(tokenizer: str, turns: int) -> dict[str, Any]:
    """Take the turns with one tokenizer; every figure is (least, median, most)."""
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        first, second, theirs = (
            stack.enter_context(process_on(core)) for core in (cores[0], cores[-1], cores[0])
        )
        one, two, mapped = [], [], []
        for _ in range(turns + 1):
            one.append(first.submit(tokenise, tokenizer, 0, 1).result())
            mapped.append(theirs.submit(map_dataset, tokenizer).result())
            halves = [p.submit(tokenise, tokenizer, i, 2) for i, p in enumerate((first, second))]
            two.append([half.result() for half in halves])
            assert one[-1].digest == mapped[-1].digest, "the ids differ"
    one, two, mapped = one[1:], two[1:], mapped[1:]  # the first turn filled the caches
    both = list(zip(one, two, strict=True))
    return {
        "tokenizer": os.path.basename(tokenizer),
        "num_pairs": one[0].num_pairs,
        "ours": speeds(one),
        "datasets.map": speeds(mapped),
        "against_datasets_map": spread(
            b.processor_s / a.processor_s for a, b in zip(one, mapped, strict=True)
        ),
        "two_by_processor": spread(a.processor_s / max(h.processor_s for h in b) for a, b in both),
        "two_by_clock": spread(
            (a.ended - a.began) / (max(h.ended for h in b) - min(h.began for h in b))
            for a, b in both
        ),
    }


def speeds(turns: list[Turn]) -> dict[str, tuple[float, float, float]]:
    """Return pairs and tokens per second of processor time."""
    return {
        "pairs_per_s": spread(turn.num_pairs / turn.processor_s for turn in turns),
        "tokens_per_s": spread(turn.num_tokens / turn.processor_s for turn in turns),
    }


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Return the least, the median and the greatest."""
    ordered = sorted(values)
    return ordered[0], statistics.median(ordered), ordered[-1]


def process_on(core: int) -> ProcessPoolExecutor:
    """Return a process that keeps to one core."""
    return ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=os.sched_setaffinity,
        initargs=(0, {core}),
    )


def tokenise(tokenizer: str, part: int, parts: int) -> Turn:
    """Turn every ``parts``-th raw row into a row of the token cache."""
    from rm_ray.data.cache.cache_rows import tokenize_block

    group_tokenizer, blocks = load_group_tokenizer(tokenizer), raw_blocks(tokenizer, part, parts)
    gc.collect()
    began, processor = time.monotonic(), time.process_time()
    tables = [tokenize_block(block, group_tokenizer, ["pairs"]) for block in blocks]
    seconds, ended = time.process_time() - processor, time.monotonic()
    assert all(not any(table["reason"].to_pylist()) for table in tables), "a pair was refused"
    return make_turn(list(map(by_side, tables)), seconds, began, ended)


def map_dataset(tokenizer: str) -> Turn:
    """Turn the pairs of a loaded dataset into token ids."""
    from uuid import uuid4

    dataset, loaded = load_dataset(tokenizer), load_group_tokenizer(tokenizer).tokenizer

    def to_ids(batch: dict[str, list]) -> dict[str, list]:
        ids = {}
        for side in ("chosen", "rejected"):
            texts = loaded.apply_chat_template(batch[side], tokenize=False)
            encoded = loaded(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            ids[f"{side}_ids"] = encoded["input_ids"]
        return ids

    gc.collect()
    began, processor = time.monotonic(), time.process_time()
    mapped = dataset.map(
        to_ids,
        batched=True,
        remove_columns=dataset.column_names,
        new_fingerprint=uuid4().hex,  # spares it from hashing the tokenizer
    )
    seconds, ended = time.process_time() - processor, time.monotonic()
    return make_turn([mapped.data.table], seconds, began, ended)


def by_side(table: Any) -> Any:
    """Return the ids of pairs of the token cache in two columns, as the dataset has them."""
    import pyarrow as pa

    conversations = table["ids"].combine_chunks().flatten()
    sides = enumerate(("chosen_ids", "rejected_ids"))
    places = range(len(conversations))
    return pa.table({name: conversations.take(pa.array(places[i::2])) for i, name in sides})


def make_turn(tables: list[Any], processor_s: float, began: float, ended: float) -> Turn:
    """Count and hash the ids that a turn gave."""
    import pyarrow as pa

    ids = pa.concat_tables([t.select(["chosen_ids", "rejected_ids"]) for t in tables])
    digest, num_tokens = hashlib.sha256(), 0
    for column in ids.combine_chunks().columns:
        lists = column.combine_chunks()
        flat = lists.flatten().to_numpy().astype(np.int64)
        num_tokens += len(flat)
        digest.update(flat.tobytes() + lists.value_lengths().to_numpy().tobytes())
    return Turn(
        num_pairs=len(ids),
        num_tokens=num_tokens,
        digest=digest.hexdigest(),
        processor_s=processor_s,
        began=began,
        ended=ended,
    )


@functools.cache
def load_group_tokenizer(name: str) -> Any:
    """Load a tokenizer as the token cache does; nothing is too long for it here."""
    from rm_ray.config.sections.data import DataConfig
    from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
    from rm_ray.data.tokens.tokenizer import load_tokenizer

    return GroupTokenizer(load_tokenizer(name), DataConfig(max_length=1_000_000))


@functools.cache
def raw_rows(tokenizer: str) -> list[str]:
    """Return the real pairs as lines of JSON, or the generated ones."""
    from rm_ray.data.sources.synthetic import generate_pairs

    path = SHARED_DATA / "train.jsonl.gz"
    if tokenizer == "builtin" or not path.exists():
        return [json.dumps(row) for row in generate_pairs("train")]
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return list(lines)


@functools.cache
def raw_blocks(tokenizer: str, part: int, parts: int) -> list[dict[str, np.ndarray]]:
    """Return every ``parts``-th raw row, in blocks as Ray Data hands them to a task."""
    from rm_ray.data.sources.mixture import ROWS_PER_BLOCK

    rows = raw_rows(tokenizer)[part::parts]
    starts = range(0, len(rows), ROWS_PER_BLOCK)
    blocks = [np.array(rows[i : i + ROWS_PER_BLOCK], dtype=object) for i in starts]
    return [
        {"fragment": np.zeros(len(b), np.int32), "row": np.arange(len(b)), "json": b}
        for b in blocks
    ]


@functools.cache
def load_dataset(tokenizer: str) -> Any:
    """Return the pairs as a dataset in memory."""
    import datasets

    datasets.disable_progress_bars()
    rows = [json.loads(line) for line in raw_rows(tokenizer)]
    return datasets.Dataset.from_list([{s: r[s] for s in ("chosen", "rejected")} for r in rows])


if __name__ == "__main__":
    main()
