import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_cache import make_parts

from rm_ray.config.sections.data import DataConfig
from rm_ray.config.sections.objective import Need
from rm_ray.data.cache import grouped_parts
from rm_ray.data.cache.cache_rows import tokenize_rows
from rm_ray.data.cache.group_counts import count_groups
from rm_ray.data.cache.grouped_parts import write_grouped_parts
from rm_ray.data.cache.grouping import GroupLimits
from rm_ray.data.cache.token_parts import TABLE_COLUMNS, TokenParts
from rm_ray.data.cache.token_table import TokenTable, map_table, write_table
from rm_ray.data.tokens.group_tokenizer import GroupTokenizer
from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.storage import Storage

BUILTIN = load_tokenizer("builtin")


def pair(prompt: str, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def group(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    need: Need = "comparisons",
    max_responses: int = 9,
    max_tokens: int = 10_000,
    origins: Sequence[str] = ("rows",),
    entries: Sequence[int] = (0,),
) -> tuple[TokenParts, TokenParts]:
    """Return the parts of rows, spread over two files out of order, and the parts of groups.

    Each origin has its share of the rows, in order.
    """
    tokenizer = GroupTokenizer(BUILTIN, DataConfig(group_by_prompt=True))
    texts = [json.dumps(row) for row in rows]
    fragments = [i * len(origins) // len(rows) for i in range(len(rows))]
    named = [origins[fragment] for fragment in fragments]
    cached = [
        {"fragment": fragment, "row": i, **row}
        for i, (fragment, row) in enumerate(
            zip(fragments, tokenize_rows(tokenizer, texts, named, need=need), strict=True)
        )
    ]
    parts = make_parts(folder / "rows", cached[1::2], cached[0::2], origins=tuple(origins))
    grouped = TokenParts(
        key="grouped", parts=Storage.open(str(folder / "grouped")), origins=tuple(origins)
    )
    limits = GroupLimits(max_responses=max_responses, max_tokens=max_tokens, need=need)
    write_grouped_parts(parts, grouped, limits, entries)
    return parts, grouped


def table_of(parts: TokenParts, folder: Path) -> TokenTable:
    write_table(parts.scan(TABLE_COLUMNS, refused=False), parts.origins, folder)
    return map_table(folder)


def texts_of(table: TokenTable, number: int) -> list[str]:
    """Return the responses of a group as text."""
    prompt = int(table.columns.prompt_length[number])
    conversations = table.gather(np.array([number])).conversations(0)
    return [BUILTIN.decode(ids[prompt:]).removesuffix("<|end|>") for ids in conversations]


def test_exploded_pairs_become_lists_with_each_response_once(tmp_path: Path):
    answers = ["one", "two words", "three", "four"]
    rows = [
        pair(prompt, better, worse)
        for prompt in ("Say it", "Say it again")
        for better, worse in itertools.combinations(answers, 2)
    ]
    parts, grouped = group(tmp_path, rows)
    table, before = table_of(grouped, tmp_path / "a"), table_of(parts, tmp_path / "b")

    assert len(before) == 12
    assert table.columns.num_responses.tolist() == [4, 4]
    assert table.columns.num_comparisons.tolist() == [6, 6]
    assert [texts_of(table, number) for number in range(2)] == [answers, answers]
    np.testing.assert_allclose(table.columns.weight, 1 / 6, rtol=1e-6)
    assert (table.columns.better < table.columns.worse).all()
    assert table.row.tolist() == [0, 6]
    for number in range(2):
        for place, ids in enumerate(table.gather(np.array([number])).conversations(0)):
            pairs = before.gather(np.arange(6 * number, 6 * number + 6))
            assert any(
                ids.tolist() == other.tolist() for i in range(6) for other in pairs.conversations(i)
            ), place


def test_prompts_that_differ_at_all_and_other_sources_stay_apart(tmp_path: Path):
    rows = [
        pair("Say it", "one", "two", source="a"),
        pair("say it", "one", "two", source="a"),
        pair("Say it", "one", "three", source="b"),
        pair("Say it", "one", "three", source="a"),
    ]
    table = table_of(group(tmp_path, rows)[1], tmp_path / "a")
    assert table.columns.num_responses.tolist() == [3, 2, 2]
    assert [table.sources[source] for source in table.source] == ["a", "a", "b"]


def test_rows_of_one_entry_group_together_whatever_their_file(tmp_path: Path):
    rows = [
        pair("Say it", "one", "two"),
        pair("Say it", "one", "other", source="a"),
        pair("Say it", "one", "three"),
        pair("Say it", "one", "more", source="a"),
        pair("Say it", "one", "four"),
        pair("Say it", "one", "else", source="a"),
    ]
    files = ("1.jsonl", "2.jsonl", "3.jsonl")
    grouped = group(tmp_path, rows, origins=files, entries=(0, 0, 1))[1]
    table = table_of(grouped, tmp_path / "a")

    found = [texts_of(table, number) for number in range(len(table))]
    assert found == [
        ["one", "two", "three"], ["one", "other", "more"], ["one", "four"], ["one", "else"]
    ]  # fmt: skip
    assert [table.sources[source] for source in table.source] == ["1.jsonl", "a", "3.jsonl", "a"]


def test_a_group_fits_into_a_micro_batch_with_its_prompt(tmp_path: Path):
    answers = [f"{letter} " * 24 for letter in "uvwxyz"]
    rows = [pair("word " * 75, a, b) for a, b in itertools.combinations(answers, 2)]
    table = table_of(group(tmp_path, rows, max_tokens=450)[1], tmp_path / "a")

    assert len(table) > 1
    assert table.columns.num_responses.max() > 2
    assert table.lengths.distinct.max() <= 450


def test_files_and_blocks_of_any_size_hold_the_same_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [pair(f"Say {i % 5}", f"one {i}", f"two {i // 5}", margin=i % 3) for i in range(40)]
    whole = table_of(group(tmp_path / "1", rows)[1], tmp_path / "a")
    monkeypatch.setattr(grouped_parts, "TOKENS_PER_FILE", 100)
    monkeypatch.setattr(grouped_parts, "TOKENS_AT_ONCE", 50)
    grouped = group(tmp_path / "2", rows)[1]
    divided = table_of(grouped, tmp_path / "b")

    assert len(grouped.parts.list()) > 2
    np.testing.assert_array_equal(divided.tokens, whole.tokens)
    for name, values in vars(whole.columns).items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(getattr(divided.columns, name), values)


def test_repeats_are_those_of_the_rows(tmp_path: Path):
    rows = [pair("Say it", "one", "two", margin=1.0)] * 3
    rows += [pair("Say it", "two", "one", margin=1.0), *([pair("Say on", "one", "two")] * 2)]
    parts, grouped = group(tmp_path, rows, need="margins")

    counts = count_groups(grouped, parts)
    assert (counts.num_groups, counts.num_rows) == (1, 4)
    assert (counts.duplicates, counts.contradictions) == (2, 4)


def test_groups_keep_within_the_limits(tmp_path: Path):
    rows = [pair("Say it", "best", f"answer {i}") for i in range(7)]
    table = table_of(group(tmp_path, rows, max_responses=4)[1], tmp_path / "a")
    assert table.columns.num_responses.tolist() == [4, 4, 2]
    assert all(texts_of(table, number)[0] == "best" for number in range(3))


def test_margins_stay_with_their_comparisons(tmp_path: Path):
    rows = [pair("Say it", "one", "two", margin=2.0), pair("Say it", "one", "three", margin=0.5)]
    columns = table_of(group(tmp_path, rows)[1], tmp_path / "a").columns
    assert columns.margin.tolist() == [2.0, 0.5]


def test_a_group_that_lacks_what_the_objective_needs_is_refused_row_by_row(tmp_path: Path):
    rows = [pair("Say it", "one", "two"), pair("Say more", "one", "two", margin=1.0)]
    rows.append(pair("Say more", "one", "three"))
    parts, grouped = group(tmp_path, rows, need="margins")

    (refused,) = grouped.scan(("row", "reason", "raw"), refused=True)

    assert json.loads(refused["raw"][0].as_py()) == rows[0]
    assert refused["row"].to_pylist() == [0]
    counts = count_groups(grouped, parts)
    assert (counts.num_rows, counts.num_groups, counts.num_comparisons) == (2, 1, 2)


def test_nothing_to_group_gives_nothing(tmp_path: Path):
    _, grouped = group(tmp_path, [pair("Say it", "same", "same")])
    assert not list(grouped.scan(("row",), refused=False))
    assert math.isclose(len(table_of(grouped, tmp_path / "a")), 0)
